"""The drag operations of DragGAN (imported as ``draggan_fast.kernels``; reached only through ``draggan_fast.ops``)."""
