package stage

import (
	"context"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// ReasonAssert is the reason of a rejection by an assert stage.
const ReasonAssert pipeline.Reason = "assert"

// Assert is the stage that rejects events for which a condition does not hold.
func Assert() Kind {
	return Kind{
		Name: "assert",
		Doc: "Rejects events for which a condition is false. Use it for invalid events: a rejected event becomes a dead letter with the reason assert and a message, " +
			"but an event that a filter drops does not.",
		Params: []Param{
			{Name: "that", Form: Expression, Required: true, Doc: "The condition that must be true."},
			{Name: "message", Form: Word, Doc: "The message of the dead letter. The default is the text of the condition."},
		},
		Example: `on: [OrderCreated]
that: data.items.all(i, i.quantity > 0)
message: an item without a quantity`,
		New: newAssert,
	}
}

type assert struct {
	conds []*expr.Program // by type; nil if the stage does not handle the type
	fails error           // the rejection; created once, because it does not depend on the event
	scope expr.Scope      // owned by the clone: Process writes it
}

func newAssert(in Input) (Built, []expr.Fault) {
	that, _ := in.Args.Find("that")
	s := &assert{conds: make([]*expr.Program, len(in.Types)), fails: pipeline.Reject(ReasonAssert, "not true: %s", that.Value.Text)}
	if message, ok := in.Args.Find("message"); ok {
		s.fails = pipeline.Reject(ReasonAssert, "%s", message.Value.Text)
	}
	var faults []expr.Fault
	for i, t := range in.Types {
		if !t.On {
			continue
		}
		var more []expr.Fault
		s.conds[i], more = t.Env.CompileAt(that.Value, t.Name, expr.Condition("an assert"))
		faults = append(faults, more...)
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return s, nil
}

func (s *assert) Reads(typ int) [][]string { return appendPaths(nil, s.conds[typ]) }

func (s *assert) Writes(int) [][]string { return nil }

func (s *assert) Volatile(typ int) (fields [][]string, fate bool) { return nil, clocked(s.conds[typ]) }

// Ensures implements [Ensurer].
func (s *assert) Ensures(typ int) expr.Facts { return s.conds[typ].Ensures(true) }

func (s *assert) Bind(layouts []*codec.Layout) error { return bind(s.conds, layouts) }

func (s *assert) Clone() Built { return &assert{conds: s.conds, fails: s.fails} }

func (s *assert) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	p := s.conds[e.Type]
	if p == nil {
		return pipeline.Pass, nil
	}
	s.scope.Reset(e.Started, &e.View)
	switch ok, err := p.Test(&s.scope); {
	case err != nil:
		return pipeline.Drop, err
	case !ok:
		return pipeline.Drop, s.fails
	}
	return pipeline.Pass, nil
}
