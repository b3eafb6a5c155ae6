// The operations that OpenVINO is given (kernels/__init__.py), and functions that are called by themselves (drawing.py, rows.py).

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>

#include "attention.hpp"
#include "drawing.hpp"
#include "layers.hpp"
#include "product.hpp"
#include "rows.hpp"

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<dynatree::TreeAttention>>(),
#ifdef __AVX512VNNI__
    std::make_shared<ov::OpExtension<dynatree::Product>>(),
    std::make_shared<ov::OpExtension<dynatree::Layers>>(),
#endif
}));
