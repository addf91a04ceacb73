package stage

import (
	"context"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// The keywords of the parameters match and otherwise.
const (
	routeFirst = "first"
	routeAll   = "all"
	routePass  = "pass"
	routeDrop  = "drop"
)

// Route is the stage that chooses the output topics of events.
func Route() Kind {
	return Kind{
		Name: "route",
		Doc: "Chooses the topic of an event: the topic of the first matching case, or the topics of all matching cases. " +
			"The event passes the remaining stages once, regardless of the number of topics. If several route stages choose topics for an event, the last one decides.",
		Params: []Param{
			{Name: "cases", Form: Cases, Required: true, Doc: "The cases, tested in this order.", Params: []Param{
				{Name: "when", Form: Expression, Required: true, Doc: "The condition that an event must meet to match the case."},
				{Name: "to", Form: Word, Required: true, Topic: true, Doc: "The topic for matching events. It replaces the pipeline's own topic."},
			}},
			{Name: "match", Form: Word, Values: []string{routeFirst, routeAll}, Default: routeFirst,
				Doc: "With first, only the first matching case applies. With all, the event is written to the topic of every matching case."},
			{Name: "otherwise", Form: Word, Default: routePass,
				Doc: "The handling of an event that matches no case: pass keeps its current topic, drop filters it, and any other value is the topic to write it to."},
		},
		Example: `cases:
  - {when: type.startsWith('Order'), to: shop.orders}
  - {when: type.startsWith('User'), to: shop.users}
otherwise: drop`,
		Moves: true,
		New:   newRoute,
	}
}

type route struct {
	on        []bool          // by type
	cases     [][]routeCase   // by type: the cases that can match
	checks    []*expr.Program // by type: a case whose value is known, but that checks the event; nil for none
	all       bool
	otherwise []string // the topic; nil for pass and drop
	drop      bool
	topics    []string

	// Owned by the clone: Process writes them.
	scope expr.Scope
	to    []string // the capacity is the number of topics
}

// A routeCase is a case for one event type.
type routeCase struct {
	when *expr.Program // nil: the case always matches
	to   []string      // one topic
}

func newRoute(in Input) (Built, []expr.Fault) {
	cases, _ := in.Args.Find("cases")
	match, _ := in.Args.Find("match")
	otherwise, _ := in.Args.Find("otherwise")
	s := &route{
		on: make([]bool, len(in.Types)), cases: make([][]routeCase, len(in.Types)), checks: make([]*expr.Program, len(in.Types)),
		all: match.Value.Text == routeAll, drop: otherwise.Value.Text == routeDrop,
	}
	for i, t := range in.Types {
		s.on[i] = t.On
	}
	var faults []expr.Fault
	if len(cases.Items) == 0 {
		faults = append(faults, fault(cases.Key, "cases: [{when: EXPRESSION, to: TOPIC}]", "a route needs a case"))
	}
	topic := func(name expr.Source, hint string) []string {
		if !slices.Contains(in.Topics, name.Text) {
			if near := expr.Suggest(name.Text, in.Topics); near != "" {
				hint = near
			}
			faults = append(faults, fault(name, hint, "there is no topic %s", name.Text))
		}
		if !slices.Contains(s.topics, name.Text) {
			s.topics = append(s.topics, name.Text)
		}
		return []string{name.Text}
	}
	used := make([]bool, len(cases.Items)) // the case can match events of some type
	for n, item := range cases.Items {
		when, _ := item.Args.Find("when")
		name, _ := item.Args.Find("to")
		to := topic(name.Value, "declare it under topics")
		for i, t := range in.Types {
			if !t.On {
				continue
			}
			p, more := t.Env.CompileAt(when.Value, t.Name, expr.Condition("a route"))
			if len(more) > 0 {
				faults = append(faults, more...)
				used[n] = true // unknown, because the condition is faulty
				continue
			}
			if have := s.cases[i]; !s.all && len(have) > 0 && have[len(have)-1].when == nil {
				continue // an earlier case matches all events of the type
			}
			holds, known := p.Const()
			if known && p.Checks() && s.checks[i] == nil {
				s.checks[i] = p
			}
			if known && !holds {
				continue
			}
			if known {
				p = nil
			}
			s.cases[i] = append(s.cases[i], routeCase{p, to})
			used[n] = true
		}
		if !used[n] {
			faults = append(faults, fault(when.Value, "remove the case, or check for a misspelled type", "no event can match this case: for every type, it is false or an earlier case matches first"))
		}
	}
	if text := otherwise.Value.Text; text != routePass && text != routeDrop {
		s.otherwise = topic(otherwise.Value, "use pass, drop or the name of a declared topic")
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return s, nil
}

// Topics implements [Router].
func (s *route) Topics() []string { return s.topics }

// Targets implements [Router].
func (s *route) Targets(typ int) (topics []string, own bool) {
	for _, c := range s.cases[typ] {
		if !slices.Contains(topics, c.to[0]) {
			topics = append(topics, c.to[0])
		}
	}
	switch {
	case !s.on[typ]:
		own = true
	case s.always(typ) || s.drop:
	case s.otherwise != nil:
		if !slices.Contains(topics, s.otherwise[0]) {
			topics = append(topics, s.otherwise[0])
		}
	default:
		own = true
	}
	return topics, own
}

// always reports whether every event of a type matches a case.
func (s *route) always(typ int) bool {
	return slices.ContainsFunc(s.cases[typ], func(c routeCase) bool { return c.when == nil })
}

// Passes implements [Gate].
func (s *route) Passes(typ int) bool { return !s.on[typ] || !s.drop || len(s.cases[typ]) > 0 }

func (s *route) Reads(typ int) (paths [][]string) {
	paths = appendPaths(nil, s.checks[typ])
	for _, c := range s.cases[typ] {
		paths = appendPaths(paths, c.when)
	}
	return paths
}

func (s *route) Writes(int) [][]string { return nil }

func (s *route) Volatile(typ int) (fields [][]string, fate bool) {
	return nil, slices.ContainsFunc(s.cases[typ], func(c routeCase) bool { return clocked(c.when) })
}

func (s *route) Bind(layouts []*codec.Layout) error {
	if err := bind(s.checks, layouts); err != nil {
		return err
	}
	for typ := range s.cases {
		for _, c := range s.cases[typ] {
			if c.when == nil {
				continue
			}
			if err := c.when.Bind(layouts[typ]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *route) Clone() Built {
	clone := *s
	clone.scope, clone.to = expr.Scope{}, make([]string, 0, len(s.topics))
	return &clone
}

// Process sets e.To to a slice that the stage owns. It is valid until the next event.
func (s *route) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	if !s.on[e.Type] {
		return pipeline.Pass, nil
	}
	s.scope.Reset(e.Started, &e.View)
	if p := s.checks[e.Type]; p != nil {
		if _, err := p.Test(&s.scope); err != nil {
			return pipeline.Drop, err
		}
	}
	s.to = s.to[:0]
	cases := s.cases[e.Type]
	for i := range cases {
		c := &cases[i]
		if c.when != nil {
			ok, err := c.when.Test(&s.scope)
			if err != nil {
				return pipeline.Drop, err
			}
			if !ok {
				continue
			}
		}
		if !s.all {
			e.To = c.to
			return pipeline.Pass, nil
		}
		if !slices.Contains(s.to, c.to[0]) {
			s.to = append(s.to, c.to[0])
		}
	}
	switch {
	case len(s.to) > 0:
		e.To = s.to
	case s.drop:
		return pipeline.Drop, nil
	case s.otherwise != nil:
		e.To = s.otherwise
	}
	return pipeline.Pass, nil
}
