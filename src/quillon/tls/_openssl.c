/* Octets through one OpenSSL connection with memory BIOs, one call for each thing to do. `OpenSSLPipe` of
 * openssl_pipe.py says what is asked, and `PythonPipe` there does the same without this file.
 *
 * The library is the one that the package cryptography brings: its functions are called by their addresses, which its
 * bindings give, so nothing is linked here and there is one OpenSSL in the process. FUNCTIONS tells which are needed and
 * of which type; who binds them compares the types.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <structmember.h>

#define ROOM 65536 /* octets; a record has 16384 at most (RFC 8446 5.2) */
enum { WANT_READ = 2, SSL = 1, TLSEXT_HOST_NAME = 0 }; /* of ssl.h and tls1.h */

static struct {
    int (*SSL_do_handshake)(void *);
    int (*SSL_read)(void *, void *, int);
    int (*SSL_write)(void *, const void *, int);
    int (*SSL_get_error)(void *, int);
    void (*ERR_clear_error)(void);
    int (*BIO_read)(void *, void *, int);
    int (*BIO_write)(void *, const void *, int);
    const char *(*SSL_get_version)(void *);
    void *(*SSL_get_current_cipher)(void *);
    const char *(*SSL_CIPHER_get_name)(void *);
    int (*SSL_CIPHER_get_bits)(void *, int *);
    const char *(*SSL_get0_group_name)(void *);
    const char *(*SSL_get_servername)(void *, int);
    void *(*SSL_get_peer_certificate)(void *);
    void *(*SSL_get0_verified_chain)(void *);
    int (*sk_X509_num)(void *);
    void *(*sk_X509_value)(void *, int);
    void (*X509_free)(void *);
    int (*i2d_X509_bio)(void *, void *);
    void *(*BIO_new)(void *);
    void *(*BIO_s_mem)(void);
    int (*BIO_free)(void *);
} library;

static const struct {
    const char *name, *type;
    size_t place;
} FUNCTIONS[] = {
#define FUNCTION(name, type) {#name, type, offsetof(__typeof__(library), name)}
    FUNCTION(SSL_do_handshake, "int(*)(SSL *)"),
    FUNCTION(SSL_read, "int(*)(SSL *, void *, int)"),
    FUNCTION(SSL_write, "int(*)(SSL *, void *, int)"),
    FUNCTION(SSL_get_error, "int(*)(SSL *, int)"),
    FUNCTION(ERR_clear_error, "void(*)()"),
    FUNCTION(BIO_read, "int(*)(BIO *, void *, int)"),
    FUNCTION(BIO_write, "int(*)(BIO *, void *, int)"),
    FUNCTION(SSL_get_version, "char *(*)(SSL *)"),
    FUNCTION(SSL_get_current_cipher, "SSL_CIPHER *(*)(SSL *)"),
    FUNCTION(SSL_CIPHER_get_name, "char *(*)(SSL_CIPHER *)"),
    FUNCTION(SSL_CIPHER_get_bits, "int(*)(SSL_CIPHER *, int *)"),
    FUNCTION(SSL_get0_group_name, "char *(*)(SSL *)"),
    FUNCTION(SSL_get_servername, "char *(*)(SSL *, int)"),
    FUNCTION(SSL_get_peer_certificate, "X509 *(*)(SSL *)"),
    FUNCTION(SSL_get0_verified_chain, "Cryptography_STACK_OF_X509 *(*)(SSL *)"),
    FUNCTION(sk_X509_num, "int(*)(Cryptography_STACK_OF_X509 *)"),
    FUNCTION(sk_X509_value, "X509 *(*)(Cryptography_STACK_OF_X509 *, int)"),
    FUNCTION(X509_free, "void(*)(X509 *)"),
    FUNCTION(i2d_X509_bio, "int(*)(BIO *, X509 *)"),
    FUNCTION(BIO_new, "BIO *(*)(BIO_METHOD *)"),
    FUNCTION(BIO_s_mem, "BIO_METHOD *(*)()"),
    FUNCTION(BIO_free, "int(*)(BIO *)"),
#undef FUNCTION
};
#define COUNT (sizeof FUNCTIONS / sizeof FUNCTIONS[0])

static int bound;

typedef struct {
    PyObject_HEAD
    PyObject *owner; /* of the pointers */
    void *ssl, *into, *out;
    int error;
} Pipe;

/* Hand over what the peer has sent; a BIO in memory takes all or none. */
static int
give(Pipe *self, const char *octets, Py_ssize_t size)
{
    while (size > 0) {
        int part = size < (1 << 30) ? (int)size : 1 << 30;
        if (library.BIO_write(self->into, octets, part) != part) {
            PyErr_SetString(PyExc_MemoryError, "OpenSSL takes no more octets");
            return -1;
        }
        octets += part;
        size -= part;
    }
    return 0;
}

/* A call gave `result`, which is no success: `error` says what it is, unless it only wants more octets. */
static void
note_end(Pipe *self, int result)
{
    int error = library.SSL_get_error(self->ssl, result);
    if (error != WANT_READ)
        self->error = error ? error : SSL;
}

static PyObject *
pipe_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"owner", "ssl", "into", "out", NULL};
    PyObject *owner;
    unsigned long long ssl, into, out;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "OKKK:Pipe", names, &owner, &ssl, &into, &out))
        return NULL;
    if (!bound) {
        PyErr_SetString(PyExc_RuntimeError, "no functions are bound");
        return NULL;
    }
    Pipe *self = (Pipe *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->owner = Py_NewRef(owner);
    self->ssl = (void *)(uintptr_t)ssl;
    self->into = (void *)(uintptr_t)into;
    self->out = (void *)(uintptr_t)out;
    return (PyObject *)self;
}

static void
pipe_dealloc(Pipe *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->owner);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *
pipe_handshake(Pipe *self, PyObject *octets)
{
    char *start;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(octets, &start, &size) < 0 || give(self, start, size) < 0)
        return NULL;
    library.ERR_clear_error();
    int result = library.SSL_do_handshake(self->ssl);
    if (result > 0)
        Py_RETURN_TRUE;
    note_end(self, result);
    Py_RETURN_FALSE;
}

static PyObject *
pipe_read(Pipe *self, PyObject *octets)
{
    char *start, room[ROOM];
    Py_ssize_t size, used = 0;
    PyObject *before = NULL; /* what did not fit into the room */
    if (PyBytes_AsStringAndSize(octets, &start, &size) < 0 || give(self, start, size) < 0)
        return NULL;
    library.ERR_clear_error();
    for (;;) {
        int result = library.SSL_read(self->ssl, room + used, (int)(ROOM - used));
        if (result <= 0) {
            note_end(self, result);
            break;
        }
        used += result;
        if (used == ROOM) {
            PyObject *part = PyBytes_FromStringAndSize(room, used);
            if (before == NULL)
                before = part;
            else
                PyBytes_ConcatAndDel(&before, part);
            if (before == NULL)
                return NULL;
            used = 0;
        }
    }
    PyObject *found = PyBytes_FromStringAndSize(room, used);
    if (before == NULL)
        return found;
    PyBytes_ConcatAndDel(&before, found);
    return before;
}

static PyObject *
pipe_write(Pipe *self, PyObject *octets)
{
    char *start;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(octets, &start, &size) < 0)
        return NULL;
    library.ERR_clear_error();
    while (size > 0) {
        int result = library.SSL_write(self->ssl, start, size < (1 << 30) ? (int)size : 1 << 30);
        if (result <= 0) {
            note_end(self, result);
            library.ERR_clear_error();
            Py_RETURN_FALSE;
        }
        start += result;
        size -= result;
    }
    Py_RETURN_TRUE;
}

/* All that a BIO in memory has. */
static PyObject *
drained(void *bio)
{
    char room[ROOM];
    PyObject *before = NULL;
    for (;;) {
        int count = library.BIO_read(bio, room, ROOM);
        if (before != NULL && count <= 0)
            return before;
        PyObject *part = PyBytes_FromStringAndSize(room, count > 0 ? count : 0);
        if (before == NULL)
            before = part;
        else
            PyBytes_ConcatAndDel(&before, part);
        if (before == NULL || count < ROOM)
            return before;
    }
}

static PyObject *
pipe_take(Pipe *self, PyObject *Py_UNUSED(nothing))
{
    return drained(self->out);
}

static PyObject *
pipe_facts(Pipe *self, PyObject *Py_UNUSED(nothing))
{
    void *cipher = library.SSL_get_current_cipher(self->ssl);
    const char *name = cipher ? library.SSL_CIPHER_get_name(cipher) : "";
    const char *group = cipher ? library.SSL_get0_group_name(self->ssl) : NULL; /* it needs a session */
    int bits = cipher ? library.SSL_CIPHER_get_bits(cipher, NULL) : 0;
    const char *asked = library.SSL_get_servername(self->ssl, TLSEXT_HOST_NAME);
    return Py_BuildValue("(ssisy)", library.SSL_get_version(self->ssl), name, bits, group ? group : "",
                         asked ? asked : "");
}

/* A certificate in DER; it is not given up. */
static PyObject *
der_of(void *certificate)
{
    void *bio = library.BIO_new(library.BIO_s_mem());
    if (bio == NULL)
        return PyErr_NoMemory();
    library.i2d_X509_bio(bio, certificate);
    PyObject *der = drained(bio);
    library.BIO_free(bio);
    return der;
}

static PyObject *
pipe_peer(Pipe *self, PyObject *Py_UNUSED(nothing))
{
    void *certificate = library.SSL_get_peer_certificate(self->ssl);
    if (certificate == NULL)
        Py_RETURN_NONE;
    PyObject *der = der_of(certificate);
    library.X509_free(certificate);
    return der;
}

static PyObject *
pipe_verified(Pipe *self, PyObject *Py_UNUSED(nothing))
{
    void *chain = library.SSL_get0_verified_chain(self->ssl);
    PyObject *found = PyList_New(0);
    for (int n = 0; found != NULL && chain != NULL && n < library.sk_X509_num(chain); n++) {
        PyObject *der = der_of(library.sk_X509_value(chain, n));
        if (der == NULL || PyList_Append(found, der) < 0)
            Py_CLEAR(found);
        Py_XDECREF(der);
    }
    return found;
}

static PyMethodDef pipe_methods[] = {
    {"handshake", (PyCFunction)pipe_handshake, METH_O, "Go on with the handshake; whether it has ended well."},
    {"read", (PyCFunction)pipe_read, METH_O, "The plaintext of all whole records."},
    {"write", (PyCFunction)pipe_write, METH_O, "Encrypt; whether that was possible."},
    {"take", (PyCFunction)pipe_take, METH_NOARGS, "What is to be sent to the peer."},
    {"facts", (PyCFunction)pipe_facts, METH_NOARGS, "Protocol, cipher, its bits, group, and the name asked for."},
    {"peer", (PyCFunction)pipe_peer, METH_NOARGS, "The peer's certificate in DER, or None."},
    {"verified", (PyCFunction)pipe_verified, METH_NOARGS, "The chain that was verified, in DER."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef pipe_members[] = {
    {"error", T_INT, offsetof(Pipe, error), READONLY, "SSL_ERROR_* of what has ended it; 0 while it goes on."},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *
pipe_types(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(nothing))
{
    PyObject *found = PyDict_New();
    for (size_t n = 0; found != NULL && n < COUNT; n++) {
        PyObject *type = PyUnicode_FromString(FUNCTIONS[n].type);
        if (type == NULL || PyDict_SetItemString(found, FUNCTIONS[n].name, type) < 0)
            Py_CLEAR(found);
        Py_XDECREF(type);
    }
    return found;
}

static PyObject *
bind(PyObject *Py_UNUSED(module), PyObject *addresses)
{
    if (!PyDict_Check(addresses)) {
        PyErr_SetString(PyExc_TypeError, "a dict of addresses is needed");
        return NULL;
    }
    for (size_t n = 0; n < COUNT; n++) {
        PyObject *address = PyDict_GetItemString(addresses, FUNCTIONS[n].name);
        void *pointer = address ? PyLong_AsVoidPtr(address) : NULL;
        if (pointer == NULL) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "no address of %s", FUNCTIONS[n].name);
            return NULL;
        }
        memcpy((char *)&library + FUNCTIONS[n].place, &pointer, sizeof pointer);
    }
    bound = 1;
    Py_RETURN_NONE;
}

static PyType_Slot pipe_slots[] = {
    {Py_tp_new, pipe_new},
    {Py_tp_dealloc, pipe_dealloc},
    {Py_tp_methods, pipe_methods},
    {Py_tp_members, pipe_members},
    {Py_tp_doc, "Octets through one OpenSSL connection."},
    {0, NULL},
};

static PyType_Spec pipe_spec = {"quillon.tls._openssl.Pipe", sizeof(Pipe), 0, Py_TPFLAGS_DEFAULT, pipe_slots};

static PyMethodDef methods[] = {
    {"types", pipe_types, METH_NOARGS, "The functions that are needed, and their types as cffi writes them."},
    {"bind", bind, METH_O, "Use the functions at these addresses."},
    {NULL, NULL, 0, NULL},
};

static int
fill(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&pipe_spec);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, fill},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "quillon.tls._openssl", NULL, 0, methods, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__openssl(void)
{
    return PyModuleDef_Init(&module);
}
