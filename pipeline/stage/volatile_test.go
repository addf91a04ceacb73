package stage_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
)

// volatility describes the result of stage.Volatile for the type shop.NAME, for each of
// the stages: the paths of the fields, then "fate" if the fate is volatile.
func volatility(r *runner, name string) string {
	typ := slices.IndexFunc(r.plan.Types, func(s *codec.Schema) bool { return s.Name() == "shop."+name })
	var stages []string
	for _, s := range r.plan.Stages {
		fields, fate := stage.Volatile(s.Built, typ)
		var parts []string
		for _, f := range fields {
			parts = append(parts, strings.Join(f, "."))
		}
		if fate {
			parts = append(parts, "fate")
		}
		stages = append(stages, strings.Join(parts, " "))
	}
	return strings.Join(stages, " | ")
}

func TestEveryKindDeclaresItsVolatileEffects(t *testing.T) {
	for _, c := range []struct{ stages, typ, want string }{
		{`filter: {keep: "now() > timestamp"}`, "OrderPaid", "fate"},
		{`filter: {keep: version > 1, on: [OrderPaid]}`, "OrderPaid", ""},
		{`assert: {that: "now() > timestamp", on: [OrderPaid]}`, "OrderPaid", "fate"},
		{`assert: {that: "now() > timestamp", on: [OrderPaid]}`, "UserCreated", ""},
		{`enrich: {on: [OrderPaid], set: {metadata.at: string(now()), metadata.a: data.id, data.id: "data.id + string(now())"}}`, "OrderPaid", "metadata.at data.id"},
		{`route: {on: [OrderPaid], cases: [{when: "now() > timestamp", to: shop.orders}]}`, "OrderPaid", "fate"},
		{`rekey: {on: [OrderPaid], key: string(now())}`, "OrderPaid", "fate"},
		{`split: {on: [OrderCreated], field: data.items, set: {data.id: string(now())}}`, "OrderCreated", "data.id"},
		{`mask: {on: [UserCreated], fields: {data.email: hash}}`, "UserCreated", ""},
		{`upcast: {on: [OrderPaid], below: 2, set: {data.id: string(now())}}`, "OrderPaid", "data.id"},
		{`lookup: {on: [OrderCreated], table: users, key: data.user_id, set: {metadata.name: row.name}}`, "OrderCreated", "metadata"},
		{`lookup: {on: [OrderCreated], table: users, key: data.user_id, missing: drop}`, "OrderCreated", "fate"},
		{`lookup: {on: [OrderCreated], table: users, missing: drop}`, "OrderCreated", "fate"},
		{`lookup: {on: [OrderCreated], table: users, missing: dead_letter}`, "OrderCreated", "fate"},
		{`lookup: {on: [OrderCreated], table: users, missing: wait}`, "OrderCreated", "fate"},
		{`lookup: {on: [OrderCreated], table: users, set: {metadata.name: row.name}}`, "OrderCreated", "metadata"},
		{`lookup: {on: [OrderCreated], table: users, missing: drop}`, "UserCreated", ""},
		{`dedupe: {by: id, within: 1h}`, "OrderPaid", ""},
		{`dedupe: {by: string(now()), within: 1h}`, "OrderPaid", "fate"},
		{`http: {on: [OrderPaid], url: "'http://localhost'", set: {data.id: string(response.status)}}`, "OrderPaid", "data.id fate"},
		{`http: {on: [OrderPaid], url: "'http://localhost'", set: {data.id: string(response.status)}}`, "UserCreated", ""},
	} {
		t.Run(c.stages+" "+c.typ, func(t *testing.T) {
			if got := volatility(newRunner(t, c.stages, nil), c.typ); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// A stage in Go is not deterministic by default. Its effects are those that it declares.
func TestGoStageDeclaresItsVolatileEffects(t *testing.T) {
	for v, want := range map[stage.Volatility]string{
		stage.Deterministic:  "",
		stage.VolatileFields: "data.text metadata.a",
		stage.VolatileFate:   "data.text metadata.a fate",
	} {
		kinds := withGo(stage.Func{Name: "go", New: func(f *stage.Fields, _ map[string]string) (pipeline.StageFunc, stage.Volatility, error) {
			stage.Read[int64](f, "data.large")
			stage.Write[string](f, "data.text")
			stage.Write[string](f, "metadata.a")
			return func(context.Context, *pipeline.Event) (pipeline.Verdict, error) { return pipeline.Pass, nil }, v, nil
		}})
		r := newRunnerOf(t, `go: {on: [Sampled], use: go}`, nil, kinds)
		if got := volatility(r, "Sampled"); got != want {
			t.Errorf("volatility %d: got %q, want %q", v, got, want)
		}
		if got := volatility(r, "OrderPaid"); got != "" {
			t.Errorf("volatility %d: got %q for a type that is not in on, want none", v, got)
		}
	}
}

// random is a stage of another package: one that drops events at random.
type random struct{}

func (random) Process(context.Context, *pipeline.Event) (pipeline.Verdict, error) {
	return pipeline.Pass, nil
}
func (random) Reads(int) [][]string                        { return nil }
func (random) Writes(int) [][]string                       { return nil }
func (random) Volatile(int) (fields [][]string, fate bool) { return [][]string{{"data", "id"}}, true }
func (random) Bind([]*codec.Layout) error                  { return nil }
func (random) Clone() stage.Built                          { return random{} }
func newRandom(stage.Input) (stage.Built, []expr.Fault)    { return random{}, nil }

func TestVolatileUsesTheDeclarationOfStagesOfOtherPackages(t *testing.T) {
	kinds := stage.Builtin()
	kinds["random"] = stage.Kind{Name: "random", Doc: "Drops events at random.", New: newRandom}
	if got := volatility(newRunnerOf(t, `random: {}`, nil, kinds), "OrderPaid"); got != "data.id fate" {
		t.Errorf("got %q, want the declaration of the stage", got)
	}
}
