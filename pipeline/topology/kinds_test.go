package topology_test

import (
	"context"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
)

// kinds returns the built-in stages, and three stages that use features of the
// framework which few built-in stages use.
func kinds() map[string]stage.Kind {
	all := stage.Builtin()
	for _, k := range []stage.Kind{switchKind(), oldKind(), everyFormKind()} {
		all[k.Name] = k
	}
	return all
}

// nothing implements a stage without effects.
type nothing struct{}

func (nothing) Process(context.Context, *pipeline.Event) (pipeline.Verdict, error) {
	return pipeline.Pass, nil
}
func (nothing) Reads(int) [][]string            { return nil }
func (nothing) Writes(int) [][]string           { return nil }
func (nothing) Bind([]*codec.Layout) error      { return nil }
func (nothing) Volatile(int) ([][]string, bool) { return nil, false }

// switchStage routes events to other topics.
type switchStage struct {
	nothing
	topics []string
}

func switchKind() stage.Kind {
	return stage.Kind{
		Name: "switch", Doc: "Chooses the topic.",
		Params: []stage.Param{{Name: "cases", Form: stage.Cases, Required: true, Doc: "In order.", Params: []stage.Param{
			{Name: "when", Form: stage.Expression, Required: true, Doc: "The condition."},
			{Name: "to", Form: stage.Word, Required: true, Topic: true, Doc: "The topic."},
		}}},
		New: func(in stage.Input) (stage.Built, []expr.Fault) {
			s := &switchStage{}
			var faults []expr.Fault
			cases, _ := in.Args.Find("cases")
			for _, c := range cases.Items {
				to, _ := c.Args.Find("to")
				when, _ := c.Args.Find("when")
				s.topics = append(s.topics, to.Value.Text)
				for _, t := range in.Types {
					if t.On {
						_, err := t.Env.Compile(when.Value.Text, expr.Condition("a case"))
						faults = append(faults, expr.PlaceErrors(when.Value, t.Name, err)...)
					}
				}
			}
			return s, faults
		},
	}
}

func (s *switchStage) Topics() []string             { return s.topics }
func (s *switchStage) Targets(int) ([]string, bool) { return s.topics, true }
func (s *switchStage) Clone() stage.Built           { return s }

// oldStage reads events in an older shape.
type oldStage struct {
	nothing
	shapes []stage.Shape
	first  int
	slot   int
}

func oldKind() stage.Kind {
	return stage.Kind{
		Name: "old", Doc: "Reads what older writers wrote.",
		Params: []stage.Param{{Name: "schema", Form: stage.Word, Required: true, Doc: "A file."}},
		New: func(in stage.Input) (stage.Built, []expr.Fault) {
			arg, _ := in.Args.Find("schema")
			text, err := in.File(arg.Value.Text)
			if err != nil {
				return nil, []expr.Fault{{Source: arg.Value, Msg: err.Error()}}
			}
			s, err := codec.ParseSchema(string(text))
			if err != nil {
				return nil, []expr.Fault{{Source: arg.Value, Msg: err.Error()}}
			}
			st := &oldStage{}
			for i, t := range in.Types {
				if t.On {
					st.shapes = append(st.shapes, stage.Shape{Type: i, Schema: s, Paths: [][]string{{"total"}}})
				}
			}
			return st, nil
		},
	}
}

func (s *oldStage) Shapes() []stage.Shape { return s.shapes }
func (s *oldStage) BindOld(first int, layouts []*codec.Layout) error {
	s.first, s.slot = first, layouts[0].Slot("total")
	return nil
}
func (s *oldStage) Clone() stage.Built { return s }

// formsStage has a parameter of every form.
type formsStage struct {
	nothing
	in stage.Input
}

func everyFormKind() stage.Kind {
	return stage.Kind{
		Name: "forms", Doc: "Takes everything.",
		Params: []stage.Param{
			{Name: "word", Form: stage.Word, Values: []string{"red", "green"}, Default: "red", Doc: "A word."},
			{Name: "words", Form: stage.Words, Doc: "Words."},
			{Name: "number", Form: stage.Number, Min: 1, Max: 10, Default: "3", Doc: "A number."},
			{Name: "duration", Form: stage.Duration, Default: "10m", Doc: "A duration."},
			{Name: "flag", Form: stage.Flag, Default: "true", Doc: "A flag."},
			{Name: "texts", Form: stage.Texts, Doc: "Texts."},
			{Name: "group", Form: stage.Group, Doc: "A group.", Params: []stage.Param{
				{Name: "number", Form: stage.Number, Min: 0, Max: 9, Default: "1", Doc: "A number."},
			}},
			{Name: "named", Form: stage.Named, Doc: "Named.", Params: []stage.Param{
				{Name: "flag", Form: stage.Flag, Doc: "A flag."},
			}},
		},
		New: func(in stage.Input) (stage.Built, []expr.Fault) { return &formsStage{in: in}, nil },
	}
}

func (s *formsStage) Clone() stage.Built { return s }
