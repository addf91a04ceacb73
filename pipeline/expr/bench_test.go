package expr

import (
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/raw"
)

const orderBody = `{"id":"4707dafd-3ce1-5973-9f7b-1c9c452822e7","timestamp":"1997-01-01T00:00:00.050Z","version":1,"metadata":{"source":"cdnow","region":"eu"},` +
	`"data":{"id":"o-000001","user_id":"u-00001","items":[{"product_id":"cd","quantity":1,"price":11.77}],"total_amount":11.77}}`

// A chain filters by three fields and sets two: one layout for all programs, one
// walk per event, and a splice of the new values.
type chain struct {
	layout  *codec.Layout
	body    []byte
	filter  *Program
	enrich  []*Program
	targets []int

	view   pipeline.View
	scope  Scope
	arena  []byte
	values [][]byte
	out    []byte
}

func newChain(t testing.TB, fast bool) *chain {
	t.Helper()
	s := schemaNamed(t, "OrderCreated")
	env := newEnv(t, Root{Schema: s, Consts: map[string]string{"type": "OrderCreated"}})
	c := &chain{body: encodeJSON(t, s, orderBody), arena: make([]byte, 0, 4096), out: make([]byte, 0, 4096)}
	var err error
	if c.filter, err = env.compile(`data.total_amount > 10.0 && data.user_id.startsWith("u-") && metadata.region in ["eu", "us"]`, Condition("a filter"), fast); err != nil {
		t.Fatal(err)
	}
	paths := c.filter.Paths(0)
	var targets []Target
	for _, set := range [][2]string{{"data.total_amount", "data.total_amount * 1.19"}, {"data.user_id", `metadata.region + "-" + data.user_id`}} {
		target, err := env.Target(set[0])
		if err != nil {
			t.Fatal(err)
		}
		p, err := env.compile(set[1], target.Want(), fast)
		if err != nil {
			t.Fatal(err)
		}
		targets, c.enrich = append(targets, target), append(c.enrich, p)
		paths = append(append(paths, p.Paths(0)...), target.Path)
	}
	if c.layout, err = codec.NewLayout(s, paths); err != nil {
		t.Fatal(err)
	}
	for i, p := range append([]*Program{c.filter}, c.enrich...) {
		if err := p.Bind(c.layout); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			c.targets = append(c.targets, c.layout.Slot(targets[i-1].Path...))
		}
	}
	return c
}

func (c *chain) run() (bool, error) {
	if err := c.layout.Walk(c.body, &c.view); err != nil {
		return false, err
	}
	c.scope.Reset(time.Time{}, &c.view)
	keep, err := c.filter.Test(&c.scope)
	if err != nil || !keep {
		return false, err
	}
	c.arena, c.values = c.arena[:0], c.values[:0]
	for _, p := range c.enrich {
		n := len(c.arena)
		if c.arena, err = p.AppendIn(&c.scope, c.arena); err != nil {
			return false, err
		}
		c.values = append(c.values, c.arena[n:len(c.arena):len(c.arena)])
	}
	for i, v := range c.values {
		c.view.Set(c.targets[i], v)
	}
	c.out = c.view.Append(c.out[:0])
	return true, nil
}

// The hot path does not allocate: a walk, a filter by three fields, an enrich of
// two fields, and the splice.
func TestFilterAndEnrichAllocateNothing(t *testing.T) {
	c := newChain(t, true)
	if n := testing.AllocsPerRun(1000, func() {
		if keep, err := c.run(); err != nil || !keep {
			t.Fatal(keep, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per event", n)
	}
	got, err := codec.AppendJSON(nil, schemaNamed(t, "OrderCreated").Root().Field("data").Type, dataOf(t, c.out))
	if want := `{"id":"o-000001","user_id":"eu-u-00001","items":[{"product_id":"cd","quantity":1,"price":11.77}],"total_amount":14.0063}`; err != nil || string(got) != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
}

// dataOf returns the encoded field data of an order.
func dataOf(t testing.TB, body []byte) []byte {
	s := schemaNamed(t, "OrderCreated")
	for i := range s.Root().Fields {
		f := &s.Root().Fields[i]
		rest, err := raw.Skip(f.Type, body)
		if err != nil {
			t.Fatal(err)
		}
		if f.Name == "data" {
			return body
		}
		body = rest
	}
	return nil
}

// Common expressions compile to closures that do not allocate.
func TestCommonExpressionsAreClosures(t *testing.T) {
	s := schemaNamed(t, "Everything")
	env := newEnv(t, Root{Schema: s})
	body := zeroBody(s.Root())
	v := view(t, s, body)
	for _, src := range []string{
		"i == 1", "i != 1 && l < 7", "d >= 0.5 || f > 1.0", "!b", "b ? i > 1 : l > 1", "i < d", "s < 'b'",
		"s in ['a', 'b', 'c']", "i in [1, 2, 3]", "color == 'red'", "'k' in m", "has(m.k)", "has(rec.x)", "nl == null", "ns != null && ns == 'x'",
		"s.startsWith('a')", "s.endsWith(ns == null ? '' : ns)", "s.contains('x')", "s.matches('^a+$')", "s.size() > 3", "by.size() == 2", "list.size() > 0",
		"string(i) == '7'", "string(d) == '0.5'", "string(b) == 'true'", "int(d) == 3", "double(i) > 0.5",
		"i + l * 2 - 1 > 0", "l / 7 % 2 == 0", "d * 2.0 + 1.5 > 3.0", "-i < 0", "s + '-' + string(i) == 'a-7'",
		"tms > timestamp('2026-01-01T00:00:00Z')", "now() - tus > duration('1h')", "tms + duration('1h') < now()", "oms < duration('12h')",
		"s.lowerAscii() == 'a'", "dec > 10", "dec == decimal('1.10')", "dec + fdec * 2 - 1 < decimal('100.5')", "dec in [1, 2]", "ndec != null && ndec > 5", "dec.round(1, 'half_up') == dec.div(3, 4, 'up')", "string(-dec) == '1.00'", "id == 'x'", "uid == 'x'", "rec.x == 1 && rec.y != ''", "nt == null || nt < now()",
	} {
		p, err := env.Compile(src, Condition("a test"))
		if err != nil {
			t.Fatalf("%s: %v", src, err)
		}
		if p.slow != nil {
			t.Errorf("%s: needs the interpreter, want closures", src)
			continue
		}
		bind(p, s)
		var scope Scope
		if n := testing.AllocsPerRun(100, func() {
			scope.Reset(time.Time{}, v)
			if _, err := p.Test(&scope); err != nil {
				t.Fatalf("%s: %v", src, err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", src, n)
		}
	}
}

// BenchmarkLoading measures the cost of an event type and of an expression when a
// topology is loaded.
func BenchmarkLoading(b *testing.B) {
	s := schemaNamed(b, "OrderCreated")
	b.Run("environment", func(b *testing.B) {
		for b.Loop() {
			if _, err := NewEnv(Root{Schema: s}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("expression", func(b *testing.B) {
		env := newEnv(b, Root{Schema: s})
		for b.Loop() {
			if _, err := env.Compile(`data.total_amount > 10.0 && data.user_id.startsWith("u-")`, Condition("a filter")); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkFilterAndEnrich compares closures, the interpreter, and only the walk and
// the copy.
func BenchmarkFilterAndEnrich(b *testing.B) {
	for name, fast := range map[string]bool{"closures": true, "interpreter": false} {
		b.Run(name, func(b *testing.B) {
			c := newChain(b, fast)
			b.SetBytes(int64(len(c.body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("walk-and-copy", func(b *testing.B) {
		c := newChain(b, true)
		b.SetBytes(int64(len(c.body)))
		b.ReportAllocs()
		for b.Loop() {
			if err := c.layout.Walk(c.body, &c.view); err != nil {
				b.Fatal(err)
			}
			c.out = c.view.Append(c.out[:0])
		}
	})
}
