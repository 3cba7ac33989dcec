/* A thread that appends to files and syncs, without the interpreter's lock: `committer.py` has one group after the other
 * written here where that is all there is to do. It knows nothing of what it writes.
 *
 *   writer = Writer()          writer.fileno() becomes readable when a job is done
 *   writer.submit(fd, offset, [octets, ...])     one job at a time; the octets are kept until `result`
 *   writer.result()            0, or the errno of what failed; None while the job runs
 *   writer.close()             ends the thread, after its job
 */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_PIECES 1024 /* IOV_MAX of Linux */

enum state { IDLE, SUBMITTED, DONE, CLOSED };

typedef struct {
    PyObject_HEAD
    pthread_t thread;
    pthread_mutex_t lock; /* of `state` and `error`; the rest belongs to whose turn it is by `state` */
    pthread_cond_t changed;
    enum state state;
    int begun; /* whether there is a thread */
    int eventfd;
    int error;
    int file;
    off_t offset;
    struct iovec *pieces;
    Py_ssize_t count;
    PyObject *octets; /* a tuple that keeps them */
} Writer;

/* Write all, as pwritev2 with RWF_DSYNC; 0 or errno. What was written of a piece is taken off it. */
static int
write_all(int file, struct iovec *piece, Py_ssize_t left, off_t offset)
{
    while (left > 0) {
        ssize_t written = pwritev2(file, piece, left < MOST_PIECES ? (int)left : MOST_PIECES, offset, RWF_DSYNC);
        if (written < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (written == 0)
            return EIO;
        offset += written;
        while (left > 0 && (size_t)written >= piece->iov_len) {
            written -= piece->iov_len;
            piece++;
            left--;
        }
        if (written > 0) {
            piece->iov_base = (char *)piece->iov_base + written;
            piece->iov_len -= written;
        }
    }
    return 0;
}

static void *
run(void *argument)
{
    Writer *self = argument;
    uint64_t one = 1;
    pthread_mutex_lock(&self->lock);
    for (;;) {
        while (self->state != SUBMITTED && self->state != CLOSED)
            pthread_cond_wait(&self->changed, &self->lock);
        if (self->state == CLOSED)
            break;
        pthread_mutex_unlock(&self->lock);
        int error = write_all(self->file, self->pieces, self->count, self->offset);
        pthread_mutex_lock(&self->lock);
        self->error = error;
        self->state = DONE;
        pthread_cond_broadcast(&self->changed);
        if (write(self->eventfd, &one, sizeof one) < 0)
            abort(); /* nobody would ever be answered: end, and be started anew */
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

static void
forget_job(Writer *self)
{
    PyMem_Free(self->pieces);
    self->pieces = NULL;
    self->count = 0;
    Py_CLEAR(self->octets);
}

static PyObject *
writer_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, ":Writer", names))
        return NULL;
    Writer *self = (Writer *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = IDLE;
    self->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (self->eventfd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->changed, NULL);
    int failed = pthread_create(&self->thread, NULL, run, self);
    if (failed) {
        errno = failed;
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    self->begun = 1;
    return (PyObject *)self;
}

static PyObject *
writer_submit(Writer *self, PyObject *arguments)
{
    int file;
    long long offset;
    PyObject *list;
    if (!PyArg_ParseTuple(arguments, "iLO!:submit", &file, &offset, &PyList_Type, &list))
        return NULL;
    pthread_mutex_lock(&self->lock);
    enum state state = self->state;
    pthread_mutex_unlock(&self->lock);
    if (state != IDLE) {
        PyErr_SetString(PyExc_RuntimeError, state == CLOSED ? "the writer is closed" : "a job is under way");
        return NULL;
    }
    self->octets = PyList_AsTuple(list);
    if (self->octets == NULL)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(self->octets);
    self->pieces = PyMem_New(struct iovec, count ? count : 1);
    if (self->pieces == NULL) {
        forget_job(self);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t n = 0; n < count; n++) {
        PyObject *item = PyTuple_GET_ITEM(self->octets, n);
        if (!PyBytes_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "a piece is no bytes");
            forget_job(self);
            return NULL;
        }
        self->pieces[n].iov_base = PyBytes_AS_STRING(item);
        self->pieces[n].iov_len = PyBytes_GET_SIZE(item);
    }
    self->count = count;
    self->file = file;
    self->offset = offset;
    pthread_mutex_lock(&self->lock);
    self->state = SUBMITTED;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

static PyObject *
writer_result(Writer *self, PyObject *Py_UNUSED(nothing))
{
    uint64_t count;
    pthread_mutex_lock(&self->lock);
    int done = self->state == DONE, error = self->error;
    if (done)
        self->state = IDLE;
    pthread_mutex_unlock(&self->lock);
    if (!done)
        Py_RETURN_NONE;
    if (read(self->eventfd, &count, sizeof count) < 0 && errno != EAGAIN)
        return PyErr_SetFromErrno(PyExc_OSError);
    forget_job(self);
    return PyLong_FromLong(error);
}

static PyObject *
writer_fileno(Writer *self, PyObject *Py_UNUSED(nothing))
{
    return PyLong_FromLong(self->eventfd);
}

static void
end_thread(Writer *self)
{
    if (!self->begun)
        return;
    self->begun = 0;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&self->lock);
    while (self->state == SUBMITTED)
        pthread_cond_wait(&self->changed, &self->lock);
    self->state = CLOSED;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->lock);
    pthread_join(self->thread, NULL);
    Py_END_ALLOW_THREADS
}

static PyObject *
writer_close(Writer *self, PyObject *Py_UNUSED(nothing))
{
    end_thread(self);
    if (self->eventfd >= 0) {
        close(self->eventfd);
        self->eventfd = -1;
    }
    forget_job(self);
    Py_RETURN_NONE;
}

static void
writer_dealloc(Writer *self)
{
    PyTypeObject *type = Py_TYPE(self);
    end_thread(self);
    if (self->eventfd >= 0)
        close(self->eventfd);
    forget_job(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef writer_methods[] = {
    {"submit", (PyCFunction)writer_submit, METH_VARARGS, "Have octets written at an offset of a file, and synced."},
    {"result", (PyCFunction)writer_result, METH_NOARGS, "0 or errno of the job; None while it runs."},
    {"fileno", (PyCFunction)writer_fileno, METH_NOARGS, "A descriptor that is readable when a job is done."},
    {"close", (PyCFunction)writer_close, METH_NOARGS, "End the thread, after its job."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_methods, writer_methods},
    {Py_tp_doc, "A thread that appends to files and syncs, without the interpreter's lock."},
    {0, NULL},
};

static PyType_Spec writer_spec = {
    "quillon.spool._writer.Writer", sizeof(Writer), 0, Py_TPFLAGS_DEFAULT, writer_slots,
};

static int
fill(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&writer_spec);
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
    PyModuleDef_HEAD_INIT, "quillon.spool._writer", NULL, 0, NULL, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__writer(void)
{
    return PyModuleDef_Init(&module);
}
