// The compiled library of draggan_fast: importing draggan_fast._C registers torch.ops.draggan_fast_native.*.
//
// The schemas stand here; each csrc/<device>/<op> file registers its own implementation. draggan_fast/ops.py routes
// the public ops (torch.ops.draggan_fast.*, with their fakes and autograd) to these.

#include <Python.h>
#include <torch/library.h>

#include "cpu/levels.h"

TORCH_LIBRARY(draggan_fast_native, m) {
  m.def(
      "motion_supervision(Tensor feature, Tensor handle_points, Tensor target_points, Tensor active, int r1, "
      "int[] image_size) -> (Tensor, Tensor)");
  m.def(
      "motion_supervision_on_crops(Tensor feature, Tensor handle_points, Tensor target_points, Tensor active, int r1, "
      "int[] image_size, Tensor crop_origin, int[] whole_size) -> (Tensor, Tensor)");
  m.def(
      "point_tracking(Tensor feature, Tensor reference_feature, Tensor handle_points, Tensor active, int r2, "
      "int[] image_size) -> (Tensor, Tensor)");
  m.def("mask_loss(Tensor feature, Tensor feature0, Tensor movable_mask, int[] image_size) -> (Tensor, Tensor)");
  m.def("sample_feature(Tensor feature, Tensor points, int[] image_size) -> Tensor");
}

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

#if defined(DRAGGAN_WITH_CUDA)
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;
#endif

PyObject* build_info(PyObject*, PyObject*) {
  PyObject* levels = PyList_New(0);
  if (levels == nullptr) return nullptr;
  for (const auto level : draggan::cpu::supported_levels()) {
    PyObject* name = PyUnicode_FromString(draggan::cpu::name_of(level));
    if (name == nullptr || PyList_Append(levels, name) != 0) {
      Py_XDECREF(name);
      Py_DECREF(levels);
      return nullptr;
    }
    Py_DECREF(name);
  }
  return Py_BuildValue("{s:s,s:l,s:O,s:O,s:N,s:s}", "compiler", kCompiler, "cplusplus", static_cast<long>(__cplusplus),
                       "cpu", Py_True, "cuda", kWithCuda ? Py_True : Py_False, "levels", levels, "level",
                       draggan::cpu::name_of(draggan::cpu::current_level()));
}

PyObject* set_level(PyObject*, PyObject* argument) {
  const char* name = PyUnicode_AsUTF8(argument);
  if (name == nullptr) return nullptr;
  for (const auto level : draggan::cpu::supported_levels()) {
    if (std::string(draggan::cpu::name_of(level)) == name) {
      draggan::cpu::set_level(level);
      Py_RETURN_NONE;
    }
  }
  PyErr_Format(PyExc_ValueError, "This CPU, or this build, has no instruction level %R; see build_info()['levels'].",
               argument);
  return nullptr;
}

PyMethodDef kMethods[] = {
    {"build_info", build_info, METH_NOARGS,
     "build_info() -> {'compiler': str, 'cplusplus': int, 'cpu': bool, 'cuda': bool, 'levels': [str], 'level': str}\n"
     "levels: the vector instructions the CPU kernels can use here, the widest last; level: those they use."},
    {"set_level", set_level, METH_O,
     "set_level(name): the CPU kernels use these vector instructions from now on (for tests and measurements)."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef kModule = {
    PyModuleDef_HEAD_INIT, "_C", "Compiled library of draggan_fast.", -1, kMethods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&kModule); }
