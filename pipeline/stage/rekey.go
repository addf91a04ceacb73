package stage

import (
	"context"
	"strconv"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// ReasonEmptyKey is the reason of a rejection by a rekey stage.
const ReasonEmptyKey pipeline.Reason = "empty_key"

// Rekey is the stage that replaces the record key of events.
func Rekey() Kind {
	return Kind{
		Name: "rekey",
		Doc: "Replaces the key of the event. The key determines the partition of the output topic, so only events with the same new key keep their order: " +
			"events with the same old key and different new keys can be reordered. " +
			"An event whose new key is empty is rejected with the reason empty_key.",
		Params: []Param{
			{Name: "key", Form: Expression, Required: true, Doc: "The new key: a string (written as UTF-8) or an integer (written as decimal digits)."},
		},
		Example: `on: [OrderCreated]
key: data.user_id`,
		Moves: true,
		New:   newRekey,
	}
}

type rekey struct {
	keys   []*expr.Program // by type; nil if the stage does not handle the type
	number []bool          // by type: the key is a number
	scope  expr.Scope      // owned by the clone: Process writes it
}

func newRekey(in Input) (Built, []expr.Fault) {
	key, _ := in.Args.Find("key")
	s := &rekey{keys: make([]*expr.Program, len(in.Types)), number: make([]bool, len(in.Types))}
	var faults []expr.Fault
	for i, t := range in.Types {
		if !t.On {
			continue
		}
		var notText []expr.Fault
		if s.keys[i], notText = t.Env.CompileAt(key.Value, t.Name, expr.Value(&codec.Node{Kind: codec.String}, "the key", t.Name)); len(notText) == 0 {
			continue
		}
		p, notNumber := t.Env.CompileAt(key.Value, t.Name, expr.Value(&codec.Node{Kind: codec.Long}, "the key", t.Name))
		if len(notNumber) > 0 {
			faults = append(faults, notText...)
		}
		s.keys[i], s.number[i] = p, true
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return s, nil
}

func (s *rekey) Reads(typ int) [][]string { return appendPaths(nil, s.keys[typ]) }

func (s *rekey) Writes(int) [][]string { return nil }

func (s *rekey) Volatile(typ int) (fields [][]string, fate bool) { return nil, clocked(s.keys[typ]) }

func (s *rekey) Bind(layouts []*codec.Layout) error { return bind(s.keys, layouts) }

func (s *rekey) Clone() Built { return &rekey{keys: s.keys, number: s.number} }

var errEmptyKey = pipeline.Reject(ReasonEmptyKey, "the new key is empty")

func (s *rekey) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	p := s.keys[e.Type]
	if p == nil {
		return pipeline.Pass, nil
	}
	s.scope.Reset(e.Started, &e.View)
	enc, err := appendIn(&s.scope, e, p)
	if err != nil {
		return pipeline.Drop, err
	}
	if s.number[e.Type] {
		v, _, err := codec.ReadLong(enc)
		if err != nil {
			return pipeline.Drop, badBody(err)
		}
		n := len(e.Arena)
		e.Arena = strconv.AppendInt(e.Arena, v, 10)
		e.NewKey = e.Arena[n:len(e.Arena):len(e.Arena)]
		return pipeline.Pass, nil
	}
	key, _, err := codec.ReadText(enc)
	switch {
	case err != nil:
		return pipeline.Drop, badBody(err)
	case len(key) == 0:
		return pipeline.Drop, errEmptyKey
	}
	e.NewKey = key
	return pipeline.Pass, nil
}
