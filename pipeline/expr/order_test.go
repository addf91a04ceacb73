package expr

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"millrace/pipeline/codec"
)

// Closures and interpreter agree on every pair of numbers, null, NaN and infinities
// included, of every type, in every operator and function of numbers. Relations with null
// fail, whatever the other side is; every other value can be compared with null.
func TestClosuresAgreeWithTheInterpreterOnNumbersAndNull(t *testing.T) {
	schema := parse(t, `{"type":"record","name":"N","fields":[
		{"name":"d","type":"double"},{"name":"f","type":"float"},{"name":"i","type":"int"},{"name":"l","type":"long"},
		{"name":"nd","type":["null","double"]},{"name":"nf","type":["float","null"]},{"name":"nl","type":["null","long"]},{"name":"ni","type":["int","null"]}]}`)
	env := newEnv(t, Root{Schema: schema})
	doubles := []float64{math.NaN(), math.Inf(1), math.Inf(-1), math.Copysign(0, -1), 0, 1, -1.5, 1 << 53, 9.3e18}
	longs := []int64{0, 1, -1, 1<<53 + 1, math.MaxInt64, math.MinInt64}
	var values [][]byte
	for i := range doubles {
		for j := range longs {
			for null := range 3 { // none, the doubles, or both
				d, l := doubles[i], longs[j]
				out := codec.AppendLong(codec.AppendLong(codec.AppendFloat(codec.AppendDouble(nil, d), float32(d)), int64(int32(l))), l)
				if null >= 1 {
					out = append(out, 0, 2)
				} else {
					out = codec.AppendFloat(append(codec.AppendDouble(append(out, 2), d), 0), float32(d))
				}
				if null == 2 {
					out = append(out, 0, 2)
				} else {
					out = codec.AppendLong(append(codec.AppendLong(append(out, 2), l), 0), int64(int32(l)))
				}
				values = append(values, out)
			}
		}
	}
	fields := []string{"d", "f", "i", "l", "nd", "nf", "nl", "ni", "0", "1.5"}
	check := func(src string, want Want) {
		want.lenient = true
		quick, err := env.compile(src, want, true)
		if err != nil {
			return // the types do not fit
		}
		plain, err := env.compile(src, want, false)
		if err != nil {
			t.Fatalf("%s: compiles to closures, but not for the interpreter: %v", src, err)
		}
		bind(quick, schema)
		bind(plain, schema)
		for _, value := range values {
			v := view(t, schema, value)
			var a, b any
			var errA, errB error
			if want.node == nil {
				a, errA = quick.Bool(v)
				b, errB = plain.Bool(v)
			} else {
				a, errA = quick.Append(nil, v)
				b, errB = plain.Append(nil, v)
			}
			if x, ok := a.([]byte); ok && bytes.Equal(x, b.([]byte)) {
				a = b
			} else if ok {
				a, b = fmt.Sprintf("%x", a), fmt.Sprintf("%x", b)
			}
			if x, ok := b.([]byte); ok {
				a, b = len(x), len(x)
			}
			if a != b || (errA == nil) != (errB == nil) || errA != nil && IsNull(errA) != IsNull(errB) {
				text, _ := codec.AppendJSON(nil, schema.Root(), value)
				t.Errorf("%s of %s: closures %v, %v; interpreter %v, %v", src, text, a, errA, b, errB)
				return
			}
		}
	}
	for _, x := range fields {
		for _, y := range fields {
			for _, op := range strings.Fields("< <= > >= == !=") {
				check(x+" "+op+" "+y, Condition("a test"))
				check("!("+x+" "+op+" "+y+")", Condition("a test"))
			}
			for _, op := range strings.Fields("+ - * / %") {
				for _, to := range []string{"d", "nd", "l", "nl", "f", "i"} {
					check(x+" "+op+" "+y, Value(schema.Root().Field(to).Type, to, "N"))
				}
			}
			check(x+" in ["+y+", 1, 2.5]", Condition("a test"))
			check(x+" == null || "+x+" < "+y, Condition("a test"))
			for _, to := range []string{"d", "nd", "l", "nl"} {
				check("d > 0.0 ? "+x+" : "+y, Value(schema.Root().Field(to).Type, to, "N"))
				check("math.greatest("+x+", "+y+")", Value(schema.Root().Field(to).Type, to, "N"))
				check("math.least("+x+", "+y+")", Value(schema.Root().Field(to).Type, to, "N"))
			}
		}
		check(x+" == null", Condition("a test"))
		for _, to := range []string{"d", "nd", "f", "nf", "l", "nl", "i", "ni"} {
			for _, form := range []string{"%s", "-%s", "int(%s)", "double(%s)", "math.abs(%s)", "math.round(%s)", "math.floor(%s)"} {
				check(fmt.Sprintf(form, x), Value(schema.Root().Field(to).Type, to, "N"))
			}
		}
	}
}
