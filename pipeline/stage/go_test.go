package stage_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/schemas"
)

// tier is an example of a Go stage. It sets the customer tier of an order.
var tier = stage.Func{
	Name: "tier",
	Doc:  "Sets metadata.tier by the amount of the order: gold if it is at least the argument gold, else silver.",
	New: func(f *stage.Fields, with map[string]string) (pipeline.StageFunc, stage.Volatility, error) {
		gold, err := strconv.ParseFloat(with["gold"], 64)
		if err != nil {
			return nil, 0, fmt.Errorf("gold is not an amount: %w", err)
		}
		amount := stage.Read[float64](f, "data.total_amount")
		tier := stage.Write[string](f, "metadata.tier")
		return func(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
			switch v, _ := amount.Get(e); {
			case v < 0:
				return pipeline.Drop, pipeline.Reject("bad_amount", "negative amount %v", v)
			case v == 0:
				return pipeline.Drop, nil
			case v < gold:
				return pipeline.Pass, tier.Set(e, "silver")
			}
			return pipeline.Pass, tier.Set(e, "gold")
		}, stage.Deterministic, nil
	},
}

// withGo returns the built-in kinds, with funcs as Go stages.
func withGo(funcs ...stage.Func) map[string]stage.Kind {
	kinds := stage.Builtin()
	kinds["go"] = stage.Go(funcs...)
	return kinds
}

// A program registers its stages and loads the topology with them.
func ExampleGo() {
	plan, err := topology.Load(topology.Source{Name: "topology.yaml", Text: []byte(`
name: shop
topics:
  shop.events: {partitions: 12, types: [OrderCreated, OrderPaid]}
  shop.tiered: {partitions: 12}
  shop.dead_letters: {partitions: 3}
pipelines:
  tiers:
    from: shop.events
    stages:
      - go: {on: [OrderCreated], use: tier, with: {gold: 1000}}
    to: shop.tiered
    dead_letter: shop.dead_letters
`)}, topology.Options{Schemas: schemas.FS, Clock: time.Now, Stages: withGo(tier)})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range plan.Pipelines[0].Stages {
		fmt.Println(s.Name, "reads", s.Built.Reads(0), "and writes", s.Built.Writes(0))
	}
	// Output: go reads [[data total_amount]] and writes [[metadata]]
}

func TestGo(t *testing.T) {
	r := newRunnerOf(t, `go: {on: [OrderCreated], use: tier, with: {gold: 20}}`, nil, withGo(tier))
	for _, c := range []struct{ in, want string }{
		{order, `metadata.tier="silver"`},
		{with(t, order, "data.total_amount", "20.5", "metadata.tier", `"x"`), `metadata.tier="gold"`},
		{with(t, order, "data.total_amount", "0"), "filtered"},
		{with(t, order, "data.total_amount", "-1"), "reject bad_amount: negative amount -1"},
		{paid, "="},
	} {
		if got := r.run(t, c.in); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

// one returns kinds with a Go stage that calls do on one field.
func one[T stage.Value](path string, do func(r stage.Reader[T], w stage.Writer[T], e *pipeline.Event) error) map[string]stage.Kind {
	return withGo(stage.Func{Name: "one", New: func(f *stage.Fields, _ map[string]string) (pipeline.StageFunc, stage.Volatility, error) {
		r, w := stage.Read[T](f, path), stage.Write[T](f, path)
		return func(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
			return pipeline.Pass, do(r, w, e)
		}, stage.Deterministic, nil
	}})
}

// sets checks the value that a Go stage reads from a field (want), and the outcome of
// the event after the stage sets the field to v (after).
func sets[T stage.Value](t *testing.T, in, path, want string, v T, after string) {
	t.Helper()
	got := "null"
	r := newRunnerOf(t, `go: {on: [Sampled], use: one}`, nil, one(path, func(r stage.Reader[T], w stage.Writer[T], e *pipeline.Event) error {
		if v, ok := r.Get(e); ok {
			got = fmt.Sprintf("%v", v)
			if text, ok := any(v).([]byte); ok {
				got = string(text)
			}
		}
		return w.Set(e, v)
	}))
	if out := r.run(t, in); out != after {
		t.Errorf("%s set to %v\ngot  %s\nwant %s", path, v, out, after)
	}
	if got != want {
		t.Errorf("read %s as %s, want %s", path, got, want)
	}
}

func TestGoReadsAndSetsFieldsOfEveryType(t *testing.T) {
	full := with(t, sampled, "data.maybe", `"secret"`, "metadata", `{"a":"b"}`)
	sets(t, full, "data.flag", "true", false, "data.flag=false")
	sets(t, full, "data.small", "7", int64(-8), "data.small=-8")
	sets(t, full, "data.small", "7", int64(1)<<31, "reject go: data.small: 2147483648 does not fit an int")
	sets(t, full, "data.large", "8", int64(1)<<40, "data.large=1099511627776")
	sets(t, full, "timestamp", "852076800000000", int64(0), `timestamp="1970-01-01T00:00:00.000Z"`)
	sets(t, full, "data.single", "1.5", 0.5, "data.single=0.5")
	sets(t, full, "data.single", "1.5", 1e300, "reject go: data.single: 1e+300 does not fit a float")
	sets(t, full, "data.double", "2.5", 0.1, "data.double=0.1")
	sets(t, full, "data.raw", "ab", []byte("c"), `data.raw="Yw=="`)
	sets(t, full, "data.four", "four", []byte("five"), `data.four="Zml2ZQ=="`)
	sets(t, full, "data.four", "four", []byte("six"), "reject go: data.four: 3 bytes do not fit into shop.Four, which has 4")
	sets(t, full, "data.text", "grün", "blau", `data.text="blau"`)
	sets(t, full, "data.text", "grün", []byte("blau"), `data.text="blau"`)
	sets(t, full, "data.text", "grün", "\xff", "reject go: data.text: the text is not valid UTF-8")
	sets(t, full, "data.uuid", "4707dafd-3ce1-5973-9f7b-1c9c452822e7", "no", "reject go: data.uuid: the text is not a UUID")
	sets(t, full, "data.color", "green", "red", `data.color="red"`)
	sets(t, full, "data.color", "green", "blue", `reject go: data.color: "blue" is not one of red, green`)
	sets(t, full, "data.maybe", "secret", "x", `data.maybe="x"`)
	sets(t, sampled, "data.maybe", "null", "x", `data.maybe="x"`)
	sets(t, full, "data.maybe_number", "5", int64(6), "data.maybe_number=6")
	sets(t, full, "metadata.a", "b", "c", `metadata.a="c"`)
	sets(t, full, "metadata.new", "null", "c", `metadata.new="c"`)
	sets(t, full, "data.maybe_number", "[0 10]", stage.Raw{2}, "data.maybe_number=null")
	sets(t, full, "data.tags", "[0]", stage.Raw{2, 2, 'a', 0}, `data.tags[0]="a"`)
	sets(t, full, "data.tags", "[0]", stage.Raw{2, 2}, "reject go: data.tags: the bytes are not a valid array of string: [0], byte 1: a length of 1, but only 0 bytes are left")
	sets(t, full, "metadata.a", "[2 98]", stage.Raw{2, 'c'}, `metadata.a="c"`)
}

func TestGoFaults(t *testing.T) {
	fields := stage.Func{Name: "fields", Doc: "Declares invalid fields.", New: func(f *stage.Fields, _ map[string]string) (pipeline.StageFunc, stage.Volatility, error) {
		stage.Read[string](f, "data.totl_amount")
		stage.Read[string](f, "data.total_amount")
		stage.Read[int64](f, "data.items")
		stage.Read[string](f, "type")
		stage.Write[string](f, "type")
		return nil, stage.Deterministic, nil
	}}
	undeclared := stage.Func{Name: "undeclared", Doc: "Declares no volatility.", New: func(*stage.Fields, map[string]string) (pipeline.StageFunc, stage.Volatility, error) {
		return nil, 0, nil
	}}
	for _, c := range []badCase{
		{"unknown function", `go: {use: teir}`, `
teir} ^ use cannot be "teir"; did you mean "tier"?`},
		{"invalid argument", `go: {on: [OrderCreated], use: tier, with: {gold: much}}`, `
with: {gold: ^ Go stage tier: gold is not an amount: strconv.ParseFloat: parsing "much": invalid syntax`},
		{"fields", `go: {on: [OrderCreated], use: fields}`, `
fields} ^ shop.OrderCreated has no field data.totl_amount; did you mean "total_amount"?
fields} ^ data.total_amount of OrderCreated is double, which cannot be used as a Go string
fields} ^ data.items of OrderCreated is array of shop.Item, which cannot be used as a Go int64
fields} ^ type is "OrderCreated" in every shop.OrderCreated and cannot be set`},
		{"undeclared volatility", `go: {use: undeclared}`, `
undeclared} ^ Go stage undeclared does not declare its volatility; return stage.Deterministic, stage.VolatileFields or stage.VolatileFate from New`},
		{"field not in all types", `go: {use: tier, with: {gold: 1}}`, `
tier, with:  ^ shop.UserCreated has no field data.total_amount; the same applies to UserUpdated, UserDeleted, OrderPaid, OrderShipped, Sampled; only OrderCreated has this field: limit the stage with on: [OrderCreated]`},
	} {
		t.Run(c.name, func(t *testing.T) { checkBadOf(t, c, withGo(tier, fields, undeclared)) })
	}
	checkBad(t, []badCase{{"no registered functions", `go: {use: tier}`, `
tier} ^ this program has no Go stage tier; register it with stage.Go`}})
}

func TestFailedGoStageLeavesTheEventUnchanged(t *testing.T) {
	for name, fail := range map[string]func() error{
		"reject": func() error { return pipeline.Reject("no", "no") },
		"panic":  func() error { panic("no") },
	} {
		t.Run(name, func(t *testing.T) {
			kinds := one("data.text", func(_ stage.Reader[string], w stage.Writer[string], e *pipeline.Event) error {
				e.NewKey, e.To = []byte("x"), []string{"shop.orders"}
				return errors.Join(w.Set(e, "half"), fail())
			})
			r := newRunnerOf(t, `go: {on: [Sampled], use: one, on_error: skip}`, nil, kinds)
			if got := r.run(t, sampled); got != "=" {
				t.Errorf("got %s", got)
			}
		})
	}
}

func TestGoCallsNewForEachSession(t *testing.T) {
	kinds := withGo(stage.Func{Name: "count", New: func(f *stage.Fields, _ map[string]string) (pipeline.StageFunc, stage.Volatility, error) {
		n := int64(0)
		count := stage.Write[int64](f, "data.large")
		return func(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
			n++
			return pipeline.Pass, count.Set(e, n)
		}, stage.VolatileFields, nil
	}})
	r := newRunnerOf(t, `go: {on: [Sampled], use: count}`, nil, kinds)
	other := &runner{plan: r.plan, chain: r.plan.Chain()}
	if a, b, c := r.run(t, sampled), r.run(t, sampled), other.run(t, sampled); a != "data.large=1" || b != "data.large=2" || c != "data.large=1" {
		t.Errorf("got %s, %s, %s", a, b, c)
	}
}

func TestGoAllocatesNothing(t *testing.T) {
	text := []byte("x")
	kinds := withGo(tier, stage.Func{Name: "many", New: func(f *stage.Fields, _ map[string]string) (pipeline.StageFunc, stage.Volatility, error) {
		id, user, raw := stage.Write[[]byte](f, "data.id"), stage.Read[[]byte](f, "data.user_id"), stage.Read[stage.Raw](f, "data.items")
		version := stage.Write[int64](f, "version")
		return func(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
			items, _ := raw.Get(e)
			if _, _, err := codec.ReadBlock(items); err != nil {
				return pipeline.Drop, err
			}
			if v, ok := user.Get(e); !ok || len(v) == 0 {
				return pipeline.Drop, nil
			}
			return pipeline.Pass, errors.Join(id.Set(e, text), version.Set(e, 9))
		}, stage.Deterministic, nil
	}})
	for _, stages := range []string{`go: {on: [OrderCreated], use: tier, with: {gold: 20}}`, `go: {on: [OrderCreated], use: many}`} {
		if n := allocations(t, newRunnerOf(t, stages, nil, kinds), order); n != 0 {
			t.Errorf("%s: %v allocations per event, want 0", stages, n)
		}
	}
}
