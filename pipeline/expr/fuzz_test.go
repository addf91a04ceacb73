package expr

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzCompile compiles any text. The compiler never panics. Each fault has an offset
// in the text and a message. Closures and interpreter evaluate a valid expression
// with the same result.
func FuzzCompile(f *testing.F) {
	files, err := filepath.Glob("testdata/messages/*.in")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, file := range files {
		in, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		_, src, _ := strings.Cut(string(in), "\n\n")
		f.Add(strings.TrimSuffix(src, "\n"))
	}
	for _, fn := range Functions() {
		f.Add(fn.Example)
	}
	for _, src := range []string{
		"list.filter(x, x > l)", "m.with('k', s)", "items.map(i, i.sku + s)", "any == s ? ns : null", "ml[s] + l", "nlist + ['a']", "rec.x / i", "sub.note", "`rec`.x", ".s",
		"string(tms - tns) + string(dec)", "b && nb || has(ml.k)", "[[list]][0][0][i]", "{'a': {'b': list}}", "s.format([list, m, tms])", "-(-9223372036854775808)", "'\\xff'", "@null", "@l + 1",
	} {
		f.Add(src)
	}
	schema := parse(f, everything)
	env := newEnv(f, Root{Schema: schema, Consts: map[string]string{"rec.y": "known"}}, Root{Name: "state", Schema: schema})
	body := zeroBody(schema.Root())
	f.Fuzz(func(t *testing.T, src string) {
		v := view(t, schema, body)
		wants := []Want{Condition("a test")}
		for _, field := range []string{"i", "ns", "list", "ml", "items", "sub", "any", "tus", "dec"} {
			wants = append(wants, Value(schema.Root().Field(field).Type, field, "test.Everything"))
		}
		for _, want := range wants {
			quick, err := env.compile(src, want, true)
			if err != nil {
				list, ok := err.(Errors)
				if !ok || len(list) == 0 {
					t.Fatalf("%q: %T %v", src, err, err)
				}
				for _, e := range list {
					if e.Offset < 0 || e.Offset > len([]rune(src)) || e.Msg == "" || strings.Contains(e.Msg, "%!") {
						t.Fatalf("%q: %+v", src, *e)
					}
				}
				continue
			}
			bind(quick, schema)
			plain, err := env.compile(src, want, false)
			if err != nil {
				t.Fatalf("%q: compiles to closures, but not for the interpreter: %v", src, err)
			}
			bind(plain, schema)
			if want.node == nil {
				a, errA := quick.Bool(v)
				if b, errB := plain.Bool(v); a != b || (errA == nil) != (errB == nil) {
					t.Fatalf("%q: closures %v, %v; interpreter %v, %v", src, a, errA, b, errB)
				}
				continue
			}
			_, errA := quick.Append(nil, v)
			if _, errB := plain.Append(nil, v); (errA == nil) != (errB == nil) {
				t.Fatalf("%q as %s: closures %v; interpreter %v", src, want.field, errA, errB)
			}
		}
	})
}
