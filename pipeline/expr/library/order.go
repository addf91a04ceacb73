package library

import (
	"math"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
)

// NoNullOrder makes <, <=, > and >= fail for null beside NaN, as they do for null beside any
// other value. CEL's own functions look for NaN first, and return false.
func NoNullOrder() cel.ProgramOption {
	return cel.CustomDecoratorV2(func(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
		call, ok := i.(interpreter.InterpretableCall)
		if !ok || len(call.Args()) != 2 {
			return i, nil
		}
		switch call.Function() {
		case operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals:
			return &order{call}, nil
		}
		return i, nil
	})
}

// order is a call of a relation.
type order struct{ call interpreter.InterpretableCall }

var _ interpreter.InterpretableCall = (*order)(nil)

func (o *order) ID() int64                           { return o.call.ID() }
func (o *order) Function() string                    { return o.call.Function() }
func (o *order) OverloadID() string                  { return o.call.OverloadID() }
func (o *order) Args() []interpreter.InterpretableV2 { return o.call.Args() }

func (o *order) Eval(a interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(a, o.Exec)
}

// Exec evaluates the arguments again only if the result can be that of NaN: false, and one
// of them is null.
func (o *order) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	result := o.call.Exec(frame)
	if result != types.False {
		return result
	}
	args := o.call.Args()
	a, b := args[0].Exec(frame), args[1].Exec(frame)
	if isNaN(a) && b == types.NullValue || isNaN(b) && a == types.NullValue {
		return types.NewErrWithNodeID(o.ID(), "no such overload: %s with null", o.Function())
	}
	return result
}

func isNaN(v ref.Val) bool {
	d, ok := v.(types.Double)
	return ok && math.IsNaN(float64(d))
}
