package stage

import (
	"errors"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/codec/resolve"
	"millrace/pipeline/expr"
)

// A Rebuilder is a [FieldAdder] that can add fields within values: within a record that can
// be null, or one that an array or a map holds. A walk cannot splice such a field in. So the
// stage first makes each body one of the new schema, in which the field has its default, and
// handles the event in that form. The stage's fields are those of the new schema.
type Rebuilder interface {
	FieldAdder

	// Rebuilds reports whether the stage does so for events of a type.
	Rebuilds(typ int) bool
}

var (
	_ Rebuilder = (*enrichStage)(nil)
	_ Rebuilder = (*lookup)(nil)
	_ Rebuilder = (*call)(nil)
)

// A rebuild makes bodies of one type bodies of its schema after the stage.
type rebuild struct {
	project *resolve.Projection
	layout  *codec.Layout // of the new bodies
}

// Rebuilds implements [Rebuilder].
func (s *enrich) Rebuilds(typ int) bool { return s.rebuilds != nil && s.rebuilds[typ] != nil }

// rebuilt makes the rebuild of a type that needs one, when all its fields were added. It
// returns the type in its new form, for which the caller compiles all expressions again.
func (s *enrich) rebuilt(typ int, t Type, at expr.Source) (_ Type, ok bool, faults []expr.Fault) {
	grown := s.grown[typ]
	if grown == nil || codec.Splices(t.Schema, grown) {
		return t, false, nil
	}
	env, err := t.Env.Of(grown)
	if err != nil {
		return t, false, []expr.Fault{{Source: at, Type: t.Name, Msg: err.Error()}}
	}
	project, gaps := resolve.NewProjection(t.Schema.Root(), grown.Root(), nil, nil)
	for _, g := range gaps {
		faults = append(faults, expr.Fault{Source: at, Type: t.Name, Msg: g.Path + " cannot be copied: " + g.Why})
	}
	if s.rebuilds == nil {
		s.rebuilds = make([]*rebuild, len(s.sets))
	}
	s.rebuilds[typ] = &rebuild{project: project}
	s.sets[typ] = nil
	t.Schema, t.Env = grown, env
	return t, true, faults
}

// rebuild gives an event the form in which the stage handles it, if s has rebuilds. After an error the event
// cannot pass, because the stages after this one do not know its old form.
func (s *enrich) rebuild(e *pipeline.Event) error {
	r := s.rebuilds[e.Type]
	if r == nil {
		return nil
	}
	body := e.Body
	if e.Changed() {
		n := len(e.Arena)
		e.Arena = e.Append(e.Arena)
		body = e.Arena[n:len(e.Arena):len(e.Arena)]
	}
	n := len(e.Arena)
	var err error
	if e.Arena, err = r.project.Append(e.Arena, body, nil, &s.scratch); err == nil {
		s.spare.Record, s.spare.KeyBody = e.View.Record, e.KeyBody
		err = r.layout.Walk(e.Arena[n:len(e.Arena):len(e.Arena)], &s.spare)
	}
	if err != nil {
		var reject *pipeline.RejectError
		if errors.As(err, &reject) {
			err = reject.Err
		}
		return &pipeline.RejectError{Reason: pipeline.ReasonBadBody, Err: err, Final: true}
	}
	e.View, s.spare = s.spare, e.View
	return nil
}
