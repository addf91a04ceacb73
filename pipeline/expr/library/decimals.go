package library

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"millrace/pipeline/decimal"
)

// DecimalType is the type of decimals in expressions.
var DecimalType = types.NewOpaqueType("decimal").WithTraits(traits.AdderType | traits.SubtractorType | traits.MultiplierType | traits.NegatorType | traits.ComparerType)

// Widen is the name of a function that converts an int to a decimal and returns any
// other value unchanged. No source text can contain it.
const Widen = "@decimal"

// A Decimal is a decimal as a value of CEL's interpreter. An int mixes with it
// exactly. A double does not: the type-checker refuses it, and so does an operation
// on a value whose type is known at run time only.
type Decimal decimal.Decimal

var errDouble = errors.New("a decimal does not mix with a double; convert the double with decimal(x)")

// exact returns a decimal for a decimal or an int.
func exact(v ref.Val) (decimal.Decimal, bool) {
	switch v := v.(type) {
	case Decimal:
		return decimal.Decimal(v), true
	case types.Int:
		return decimal.FromInt(int64(v)), true
	}
	return decimal.Decimal{}, false
}

func (d Decimal) with(other ref.Val, op func(a, b decimal.Decimal) (decimal.Decimal, error)) ref.Val {
	o, ok := exact(other)
	switch {
	case ok:
		return result(op(decimal.Decimal(d), o))
	case other.Type() == types.DoubleType:
		return types.WrapErr(errDouble)
	}
	return types.MaybeNoSuchOverloadErr(other)
}

func result(d decimal.Decimal, err error) ref.Val {
	if err != nil {
		return types.WrapErr(err)
	}
	return Decimal(d)
}

// Add is d + other.
func (d Decimal) Add(other ref.Val) ref.Val { return d.with(other, decimal.Decimal.Add) }

// Subtract is d - other.
func (d Decimal) Subtract(other ref.Val) ref.Val { return d.with(other, decimal.Decimal.Sub) }

// Multiply is d * other.
func (d Decimal) Multiply(other ref.Val) ref.Val { return d.with(other, decimal.Decimal.Mul) }

// Negate is -d.
func (d Decimal) Negate() ref.Val { return Decimal(decimal.Decimal(d).Neg()) }

// Compare returns -1, 0 or 1, by number.
func (d Decimal) Compare(other ref.Val) ref.Val {
	o, ok := exact(other)
	switch {
	case ok:
		return types.Int(decimal.Decimal(d).Cmp(o))
	case other.Type() == types.DoubleType:
		return types.WrapErr(errDouble)
	}
	return types.MaybeNoSuchOverloadErr(other)
}

// Equal compares by number: 1.0 equals 1.00 and the int 1.
func (d Decimal) Equal(other ref.Val) ref.Val {
	o, ok := exact(other)
	switch {
	case ok:
		return types.Bool(decimal.Decimal(d).Cmp(o) == 0)
	case other.Type() == types.DoubleType:
		return types.WrapErr(errDouble)
	}
	return types.False
}

// ConvertToNative fails, because nothing outside of expressions takes a decimal.
func (d Decimal) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("a decimal cannot be converted to %v", t)
}

// ConvertToType converts to a string, an int or a double.
func (d Decimal) ConvertToType(t ref.Type) ref.Val {
	switch t.TypeName() {
	case DecimalType.TypeName():
		return d
	case types.TypeType.TypeName():
		return DecimalType
	case types.StringType.TypeName():
		return types.String(decimal.Decimal(d).String())
	case types.DoubleType.TypeName():
		return types.Double(decimal.Decimal(d).Float())
	case types.IntType.TypeName():
		v, err := WholeNumber(decimal.Decimal(d))
		if err != nil {
			return types.WrapErr(err)
		}
		return types.Int(v)
	}
	return types.NewErr("type conversion error from 'decimal' to '%s'", t.TypeName())
}

// Type returns DecimalType.
func (d Decimal) Type() ref.Type { return DecimalType }

// Value returns the decimal.Decimal.
func (d Decimal) Value() any { return decimal.Decimal(d) }

// WholeNumber is int(d): exact, or an error.
func WholeNumber(d decimal.Decimal) (int64, error) {
	v, err := d.Int()
	switch {
	case errors.Is(err, decimal.ErrFraction):
		return 0, fmt.Errorf("%s is not a whole number; to drop its fraction, write int(x.round(0, 'down'))", shown(d))
	case err != nil:
		return 0, fmt.Errorf("%s is out of range for an int", shown(d))
	}
	return v, nil
}

// shown returns a decimal for a message.
func shown(d decimal.Decimal) string {
	if text := d.String(); len(text) <= 60 {
		return text
	}
	return fmt.Sprintf("a decimal of %d digits", d.Digits())
}

// Rounding checks the scale and the mode of div and round.
func Rounding(scale int64, mode string) (int, decimal.Mode, error) {
	if scale < 0 || scale > decimal.MaxDigits {
		return 0, 0, fmt.Errorf("the scale %d is not from 0 to %d", scale, decimal.MaxDigits)
	}
	m, ok := decimal.ModeOf(mode)
	if !ok {
		return 0, 0, fmt.Errorf("unknown rounding mode %q: use %s", mode, strings.Join(decimal.Modes, ", "))
	}
	return int(scale), m, nil
}

// decimals returns the functions and operators of decimals. The operators of CEL's
// standard call the methods of Decimal.
func decimals() []cel.EnvOption {
	d, i, s := DecimalType, cel.IntType, cel.StringType
	list := cel.ListType(d)
	anything := cel.TypeParamType("A")
	declared := func(name, id string, result *cel.Type, args ...*cel.Type) cel.EnvOption {
		return cel.Function(name, cel.Overload(id, args, result))
	}
	converts := func(name string, from, to *cel.Type) cel.EnvOption {
		return cel.Function(name, cel.Overload(from.TypeName()+"_to_"+to.TypeName(), []*cel.Type{from}, to,
			cel.UnaryBinding(func(v ref.Val) ref.Val { return v.ConvertToType(to) })))
	}
	options := []cel.EnvOption{
		declared(operators.Add, "add_decimal", d, d, d), declared(operators.Subtract, "subtract_decimal", d, d, d),
		declared(operators.Multiply, "multiply_decimal", d, d, d), declared(operators.Negate, "negate_decimal", d, d),
		declared(operators.Less, "less_decimal", cel.BoolType, d, d), declared(operators.LessEquals, "less_equals_decimal", cel.BoolType, d, d),
		declared(operators.Greater, "greater_decimal", cel.BoolType, d, d), declared(operators.GreaterEquals, "greater_equals_decimal", cel.BoolType, d, d),
		cel.Function("sort", cel.MemberOverload("list_decimal_sort", []*cel.Type{list}, list)),
		cel.Function("@sortByAssociatedKeys", cel.MemberOverload("list_decimal_sortByAssociatedKeys", []*cel.Type{cel.ListType(anything), list}, cel.ListType(anything))),
		converts(overloads.TypeConvertString, d, s), converts(overloads.TypeConvertDouble, d, cel.DoubleType), converts(overloads.TypeConvertInt, d, i),

		cel.Function("decimal",
			cel.Overload("decimal_to_decimal", []*cel.Type{d}, d, cel.UnaryBinding(func(v ref.Val) ref.Val { return v })),
			cel.Overload("int_to_decimal", []*cel.Type{i}, d, cel.UnaryBinding(widen)),
			cel.Overload("string_to_decimal", []*cel.Type{s}, d, cel.UnaryBinding(func(v ref.Val) ref.Val { return result(decimal.Parse(string(v.(types.String)))) })),
			cel.Overload("double_to_decimal", []*cel.Type{cel.DoubleType}, d, cel.UnaryBinding(func(v ref.Val) ref.Val { return result(decimal.FromFloat(float64(v.(types.Double)))) }))),
		cel.Function(Widen, cel.Overload("widen_any", []*cel.Type{anything}, d, cel.UnaryBinding(widen))),
		cel.Function("div",
			cel.MemberOverload("decimal_div_decimal", []*cel.Type{d, d, i, s}, d, cel.FunctionBinding(div)),
			cel.MemberOverload("decimal_div_int", []*cel.Type{d, i, i, s}, d, cel.FunctionBinding(div))),
		cel.Function("round", cel.MemberOverload("decimal_round", []*cel.Type{d, i, s}, d, cel.FunctionBinding(round))),
		cel.Function("math.abs", cel.Overload("math_abs_decimal", []*cel.Type{d}, d,
			cel.UnaryBinding(func(v ref.Val) ref.Val { return Decimal(decimal.Decimal(v.(Decimal)).Abs()) }))),
		cel.Function("math.sign", cel.Overload("math_sign_decimal", []*cel.Type{d}, i,
			cel.UnaryBinding(func(v ref.Val) ref.Val { return types.Int(decimal.Decimal(v.(Decimal)).Sign()) }))),
		cel.Function("sum",
			cel.MemberOverload("list_decimal_sum", []*cel.Type{list}, d, cel.UnaryBinding(func(v ref.Val) ref.Val { return sum(v, Decimal{}) })),
			cel.MemberOverload("list_int_sum", []*cel.Type{cel.ListType(i)}, i, cel.UnaryBinding(func(v ref.Val) ref.Val { return sum(v, types.IntZero) })),
			cel.MemberOverload("list_double_sum", []*cel.Type{cel.ListType(cel.DoubleType)}, cel.DoubleType, cel.UnaryBinding(func(v ref.Val) ref.Val { return sum(v, types.Double(0)) }))),
	}
	for name, sign := range map[string]int{"math.@max": 1, "math.@min": -1} {
		id := strings.Replace(name, "math.", "math_", 1)
		options = append(options, cel.Function(name,
			cel.Overload(id+"_decimal", []*cel.Type{d}, d, cel.UnaryBinding(func(v ref.Val) ref.Val { return v })),
			cel.Overload(id+"_decimal_decimal", []*cel.Type{d, d}, d, cel.BinaryBinding(func(a, b ref.Val) ref.Val { return extreme(a, b, sign) })),
			cel.Overload(id+"_list_decimal", []*cel.Type{list}, d, cel.UnaryBinding(func(v ref.Val) ref.Val { return extremeOf(v.(traits.Lister), sign) }))))
	}
	return options
}

func widen(v ref.Val) ref.Val {
	switch v := v.(type) {
	case types.Int:
		return Decimal(decimal.FromInt(int64(v)))
	case types.Double:
		return types.WrapErr(errDouble)
	}
	return v
}

func div(args ...ref.Val) ref.Val {
	e, _ := exact(args[1])
	scale, mode, err := Rounding(int64(args[2].(types.Int)), string(args[3].(types.String)))
	if err != nil {
		return types.WrapErr(err)
	}
	return result(decimal.Decimal(args[0].(Decimal)).Div(e, scale, mode))
}

func round(args ...ref.Val) ref.Val {
	scale, mode, err := Rounding(int64(args[1].(types.Int)), string(args[2].(types.String)))
	if err != nil {
		return types.WrapErr(err)
	}
	return result(decimal.Decimal(args[0].(Decimal)).Round(scale, mode))
}

// sum adds the items of a list to zero, from the first to the last.
func sum(list ref.Val, zero traits.Adder) ref.Val {
	total := zero
	for it := list.(traits.Lister).Iterator(); it.HasNext() == types.True; {
		v := total.Add(it.Next())
		adder, ok := v.(traits.Adder)
		if !ok {
			return v
		}
		total = adder
	}
	return total.(ref.Val)
}

// extreme returns the greater of two decimals if sign is 1, the lesser if it is -1,
// and the first if they are the same number.
func extreme(a, b ref.Val, sign int) ref.Val {
	by := widen(a).(traits.Comparer).Compare(b)
	if c, ok := by.(types.Int); !ok || int(c)*sign >= 0 {
		if !ok {
			return by
		}
		return a
	}
	return b
}

func extremeOf(list traits.Lister, sign int) ref.Val {
	var best ref.Val
	for it := list.Iterator(); it.HasNext() == types.True; {
		next := it.Next()
		if _, ok := exact(next); !ok {
			return types.MaybeNoSuchOverloadErr(next)
		}
		if best == nil {
			best = next
		} else {
			best = extreme(best, next, sign)
		}
	}
	if best == nil {
		return types.NewErr("the list is empty")
	}
	return best
}

// printable returns the list with its decimals as strings, because CEL's format does
// not know decimals.
func printable(list traits.Lister) ref.Val {
	var out []ref.Val
	for it := list.Iterator(); it.HasNext() == types.True; {
		v := it.Next()
		switch item := v.(type) {
		case Decimal:
			v = types.String(decimal.Decimal(item).String())
		case traits.Lister:
			v = printable(item)
		}
		out = append(out, v)
	}
	return types.NewRefValList(types.DefaultTypeAdapter, out)
}
