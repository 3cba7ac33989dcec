/* What SMTP has to know of a piece of mail data, found in one pass. The same as `_scan` in wire.py, which says what is
 * asked; a test compares the two on every cut of many inputs. Without this file's module wire.py uses its own. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

enum { LONE = 1, NUL = 2, DOT = 4 };

/* Counts fit into an octet for a block of this size, which lets the compiler use vectors of octets. */
#define BLOCK 240

static int
scan_octets(const unsigned char *data, Py_ssize_t size)
{
    Py_ssize_t cr = 0, lf = 0, pairs = 0;
    unsigned nul = 0, dots = 0;
    Py_ssize_t at = 0;
    /* the last octet has no neighbour, and is looked at behind the loop */
    while (at < size - 1) {
        Py_ssize_t count = size - 1 - at < BLOCK ? size - 1 - at : BLOCK;
        const unsigned char *here = data + at;
        unsigned char some_cr = 0, some_lf = 0, some_pairs = 0, some_nul = 0, some_dots = 0;
        for (Py_ssize_t i = 0; i < count; i++) {
            unsigned char is_cr = here[i] == '\r', is_lf = here[i] == '\n';
            some_cr += is_cr;
            some_lf += is_lf;
            some_pairs += is_cr & (here[i + 1] == '\n');
            some_dots |= (is_cr | is_lf) & (here[i + 1] == '.');
            some_nul |= here[i] == 0;
        }
        cr += some_cr;
        lf += some_lf;
        pairs += some_pairs;
        nul |= some_nul;
        dots |= some_dots;
        at += count;
    }
    if (size > 0) {
        cr += data[size - 1] == '\r';
        lf += data[size - 1] == '\n';
        nul |= data[size - 1] == 0;
    }
    return (cr != pairs || lf != pairs ? LONE : 0) | (nul ? NUL : 0) | (dots ? DOT : 0);
}

static PyObject *
scan(PyObject *self, PyObject *argument)
{
    Py_buffer view;
    if (PyObject_GetBuffer(argument, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    int found = scan_octets(view.buf, view.len);
    PyBuffer_Release(&view);
    return PyLong_FromLong(found);
}

static PyMethodDef methods[] = {
    {"scan", scan, METH_O, "What is to be known of some octets, as flags: LONE, NUL, DOT."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "quillon.smtp._octets", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__octets(void)
{
    return PyModuleDef_Init(&module);
}
