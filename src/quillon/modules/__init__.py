"""Policy modules that come with Quillon, one file per stanza. They run before scripts, which see what they find."""
