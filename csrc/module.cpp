// The compiled library of draggan_fast, imported as draggan_fast._C.
//
// It holds no op yet: the reference kernels (kernels/reference.py) serve every op. What it does hold tells
// `draggan-fast doctor` which compiler and C++ standard built it, so that a broken tool chain is seen early.
// Plain Python C API, no torch header: it compiles in a second and cannot mismatch torch's ABI.

#include <Python.h>

#define DRAGGAN_STRINGIFY_(x) #x
#define DRAGGAN_STRINGIFY(x) DRAGGAN_STRINGIFY_(x)

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#elif defined(_MSC_VER)
constexpr const char* kCompiler = "msvc " DRAGGAN_STRINGIFY(_MSC_VER);
#else
constexpr const char* kCompiler = "unknown compiler";
#endif

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:l}", "compiler", kCompiler, "cplusplus", static_cast<long>(__cplusplus));
}

PyMethodDef kMethods[] = {
    {"build_info", build_info, METH_NOARGS, "build_info() -> {'compiler': str, 'cplusplus': int}"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef kModule = {
    PyModuleDef_HEAD_INIT, "_C", "Compiled library of draggan_fast.", -1, kMethods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&kModule); }
