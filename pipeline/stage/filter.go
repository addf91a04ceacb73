package stage

import (
	"context"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// Filter is the stage that keeps some events and drops the others.
func Filter() Kind {
	return Kind{
		Name: "filter",
		Doc:  "Keeps or drops events by a condition. Dropped events are counted as filtered.",
		Params: []Param{
			{Name: "keep", Form: Expression, Doc: "Only events for which this is true pass. Set either keep or drop."},
			{Name: "drop", Form: Expression, Doc: "Events for which this is true are dropped; the others pass. Set either keep or drop."},
		},
		Example: `keep: "type != 'UserDeleted'"`,
		New:     newFilter,
	}
}

type filter struct {
	conds []*expr.Program // by type; nil if the stage does not handle the type
	keep  bool            // the value of the condition that lets an event pass
	scope expr.Scope      // owned by the clone: Process writes it
}

func newFilter(in Input) (Built, []expr.Fault) {
	cond, keep := in.Args.Find("keep")
	drop, dropped := in.Args.Find("drop")
	switch {
	case keep && dropped:
		return nil, []expr.Fault{fault(drop.Key, "drop: x is keep: !(x)", "a filter takes keep or drop, not both")}
	case dropped:
		cond = drop
	case !keep:
		return nil, []expr.Fault{fault(in.At, "keep: EXPR, or drop: EXPR", "a filter needs a condition")}
	}
	f := &filter{conds: make([]*expr.Program, len(in.Types)), keep: keep}
	var faults []expr.Fault
	for i, t := range in.Types {
		if !t.On {
			continue
		}
		var more []expr.Fault
		f.conds[i], more = t.Env.CompileAt(cond.Value, t.Name, expr.Condition("a filter"))
		faults = append(faults, more...)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return f, nil
}

func (f *filter) Reads(typ int) [][]string { return appendPaths(nil, f.conds[typ]) }

func (f *filter) Writes(int) [][]string { return nil }

func (f *filter) Volatile(typ int) (fields [][]string, fate bool) { return nil, clocked(f.conds[typ]) }

// Passes implements [Gate]. The value of a condition is already known if it depends
// only on the event type.
func (f *filter) Passes(typ int) bool {
	if f.conds[typ] == nil {
		return true
	}
	v, known := f.conds[typ].Const()
	return !known || v == f.keep
}

// Ensures implements [Ensurer].
func (f *filter) Ensures(typ int) expr.Facts { return f.conds[typ].Ensures(f.keep) }

func (f *filter) Bind(layouts []*codec.Layout) error { return bind(f.conds, layouts) }

func (f *filter) Clone() Built { return &filter{conds: f.conds, keep: f.keep} }

func (f *filter) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	p := f.conds[e.Type]
	if p == nil {
		return pipeline.Pass, nil
	}
	f.scope.Reset(e.Started, &e.View)
	v, err := p.Test(&f.scope)
	if err != nil || v != f.keep {
		return pipeline.Drop, err
	}
	return pipeline.Pass, nil
}
