// The few C++ classes of CANN's graph library that MindSpore's Ascend plugin links to, empty, and the name of the chip
// that it is to plan for. All other functions of CANN are generated: they return 0 and compute nothing.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ge {
struct Impl;

class AscendString {
  std::shared_ptr<std::string> name_;

 public:
  AscendString(const char *name);
  const char *GetString() const;
};
AscendString::AscendString(const char *name) : name_(std::make_shared<std::string>(name ? name : "")) {}
const char *AscendString::GetString() const { return name_ ? name_->c_str() : ""; }

class Shape {
  std::shared_ptr<Impl> impl_;

 public:
  std::vector<int64_t> GetDims() const;
};
std::vector<int64_t> Shape::GetDims() const { return {}; }

class TensorDesc {
  std::shared_ptr<Impl> impl_;

 public:
  Shape GetShape() const;
  Shape GetOriginShape() const;
};
Shape TensorDesc::GetShape() const { return Shape(); }
Shape TensorDesc::GetOriginShape() const { return Shape(); }

class Tensor {
  std::shared_ptr<Impl> impl_;

 public:
  TensorDesc GetTensorDesc() const;
};
TensorDesc Tensor::GetTensorDesc() const { return TensorDesc(); }

class Operator {
  std::shared_ptr<Impl> impl_;

 public:
  virtual ~Operator() = default;
  std::string GetName() const;
  std::string GetOpType() const;
};
std::string Operator::GetName() const { return "operator"; }
std::string Operator::GetOpType() const { return "operator"; }

class OperatorFactory {
 public:
  static Operator CreateOperator(const char *, const char *);
  static Operator CreateOperator(const std::string &, const std::string &);
};
Operator OperatorFactory::CreateOperator(const char *, const char *) { return Operator(); }
Operator OperatorFactory::CreateOperator(const std::string &, const std::string &) { return Operator(); }
}  // namespace ge

extern "C" const char *aclrtGetSocName(void) { return "Ascend910B1"; }
