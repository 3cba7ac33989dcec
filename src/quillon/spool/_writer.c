/* A thread that appends to files and syncs, without the interpreter's lock: `committer.py` has one group after the other
 * written here where that is all there is to do. It knows nothing of what it writes.
 *
 *   writer = Writer()          writer.fileno() becomes readable when a job is done
 *   writer.submit([(fd, offset, [octets, ...]), ...])
 *                              one job at a time: writes, one after the other until one fails; at an offset they are
 *                              synced, at APPEND not; the octets are kept until `result`
 *   writer.result()            0 or the errno of what failed, and how many writes were done; None while the job runs
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
#define APPEND -1        /* where the file ends, whoever else appends to it */

struct job {
    int file;
    off_t offset;
    struct iovec *pieces;
    Py_ssize_t count;
};

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
    Py_ssize_t done; /* writes of the last job */
    struct job *jobs;
    Py_ssize_t count;
    PyObject *octets; /* a list that keeps them */
} Writer;

/* Write all; 0 or errno. What was written of a piece is taken off it. At an offset that is pwritev2 with RWF_DSYNC. */
static int
write_all(int file, struct iovec *piece, Py_ssize_t left, off_t offset)
{
    for (; left > 0 && piece->iov_len == 0; left--)
        piece++; /* to write nothing would be no failure */
    while (left > 0) {
        int some = left < MOST_PIECES ? (int)left : MOST_PIECES;
        ssize_t written =
            offset == APPEND ? writev(file, piece, some) : pwritev2(file, piece, some, offset, RWF_DSYNC);
        if (written < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (written == 0)
            return EIO;
        if (offset != APPEND)
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
        int error = 0;
        for (self->done = 0; self->done < self->count; self->done++) {
            struct job *job = &self->jobs[self->done];
            error = write_all(job->file, job->pieces, job->count, job->offset);
            if (error)
                break;
        }
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
    for (Py_ssize_t n = 0; n < self->count; n++)
        PyMem_Free(self->jobs[n].pieces);
    PyMem_Free(self->jobs);
    self->jobs = NULL;
    self->count = 0;
    Py_CLEAR(self->octets);
}

/* One write out of (file, offset, list of octets); 0, or -1 with an exception. */
static int
fill_job(struct job *job, PyObject *write)
{
    PyObject *list;
    long long offset;
    if (!PyTuple_Check(write)) {
        PyErr_SetString(PyExc_TypeError, "a write is no tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(write, "iLO!:submit", &job->file, &offset, &PyList_Type, &list))
        return -1;
    Py_ssize_t count = PyList_GET_SIZE(list);
    job->offset = offset;
    job->pieces = PyMem_New(struct iovec, count ? count : 1);
    if (job->pieces == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (; job->count < count; job->count++) {
        PyObject *item = PyList_GET_ITEM(list, job->count);
        if (!PyBytes_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "a piece is no bytes");
            return -1;
        }
        job->pieces[job->count].iov_base = PyBytes_AS_STRING(item);
        job->pieces[job->count].iov_len = PyBytes_GET_SIZE(item);
    }
    return 0;
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
writer_submit(Writer *self, PyObject *writes)
{
    pthread_mutex_lock(&self->lock);
    enum state state = self->state;
    pthread_mutex_unlock(&self->lock);
    if (state != IDLE) {
        PyErr_SetString(PyExc_RuntimeError, state == CLOSED ? "the writer is closed" : "a job is under way");
        return NULL;
    }
    if (!PyList_Check(writes)) {
        PyErr_SetString(PyExc_TypeError, "a list of writes is needed");
        return NULL;
    }
    Py_ssize_t count = PyList_GET_SIZE(writes);
    self->octets = PyList_New(0); /* the caller may change its lists, and not what is in them */
    self->jobs = PyMem_Calloc(count ? count : 1, sizeof *self->jobs);
    if (self->octets == NULL || self->jobs == NULL) {
        forget_job(self);
        return PyErr_NoMemory();
    }
    for (; self->count < count; self->count++) {
        PyObject *write = PyList_GET_ITEM(writes, self->count);
        if (fill_job(&self->jobs[self->count], write) < 0)
            goto failed;
        PyObject *kept = PyList_GetSlice(PyTuple_GET_ITEM(write, 2), 0, PY_SSIZE_T_MAX);
        if (kept == NULL || PyList_Append(self->octets, kept) < 0) {
            Py_XDECREF(kept);
            goto failed;
        }
        Py_DECREF(kept);
    }
    pthread_mutex_lock(&self->lock);
    self->state = SUBMITTED;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
failed:
    self->count++; /* the one that has begun is forgotten as well */
    forget_job(self);
    return NULL;
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
    return Py_BuildValue("(in)", error, self->done);
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
    {"submit", (PyCFunction)writer_submit, METH_O, "Have octets written to files, and synced where they have an offset."},
    {"result", (PyCFunction)writer_result, METH_NOARGS, "0 or errno of the job, and how many writes were done; None while it runs."},
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
