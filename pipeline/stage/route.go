package stage

import (
	"context"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
)

// What route says beside the names of topics.
const (
	routeFirst = "first"
	routeAll   = "all"
	routePass  = "pass"
	routeDrop  = "drop"
)

// Route is the stage that chooses the topics an event is written to.
func Route() Kind {
	return Kind{
		Name: "route",
		Doc: "Chooses where an event is written: to the topic of the first case that it matches, or to those of all. " +
			"The event goes through the rest of the stages once, whatever the number of topics; of several route stages that choose, the last one counts.",
		Params: []Param{
			{Name: "cases", Form: Cases, Required: true, Doc: "The cases, tried in this order.", Params: []Param{
				{Name: "when", Form: Expression, Required: true, Doc: "Which events the case is for."},
				{Name: "to", Form: Word, Required: true, Topic: true, Doc: "The topic they are written to, instead of the pipeline's own."},
			}},
			{Name: "match", Form: Word, Values: []string{routeFirst, routeAll}, Default: routeFirst,
				Doc: "Whether the first case that an event matches is its only one. With all, it is written to the topic of each."},
			{Name: "otherwise", Form: Word, Default: routePass,
				Doc: "What becomes of an event that matches no case: pass leaves it on its way to the pipeline's own topic, drop filters it, anything else is the topic to write it to."},
		},
		Example: `cases:
  - {when: type.startsWith('Order'), to: shop.orders}
  - {when: type.startsWith('User'), to: shop.users}
otherwise: drop`,
		New: newRoute,
	}
}

type route struct {
	on        []bool        // by type
	cases     [][]routeCase // by type: those that can match
	all       bool
	otherwise []string // the topic; nil if there is none
	drop      bool
	topics    []string
	scope     expr.Scope // these are written by Process
	to        []string   // has room for all topics
}

// A routeCase is a case for one type.
type routeCase struct {
	when *expr.Program // nil: always
	to   []string      // one topic
}

func newRoute(in Input) (Built, []expr.Fault) {
	cases, _ := in.Args.Find("cases")
	match, _ := in.Args.Find("match")
	otherwise, _ := in.Args.Find("otherwise")
	s := &route{
		on: make([]bool, len(in.Types)), cases: make([][]routeCase, len(in.Types)),
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
			if near := expr.Nearest(name.Text, in.Topics); near != "" {
				hint = near
			}
			faults = append(faults, fault(name, hint, "there is no topic %s", name.Text))
		}
		if !slices.Contains(s.topics, name.Text) {
			s.topics = append(s.topics, name.Text)
		}
		return []string{name.Text}
	}
	used := make([]bool, len(cases.Items)) // for some type
	for n, item := range cases.Items {
		when, _ := item.Args.Find("when")
		name, _ := item.Args.Find("to")
		to := topic(name.Value, "declare it under topics")
		for i, t := range in.Types {
			if !t.On {
				continue
			}
			p, err := t.Env.Compile(when.Value.Text, expr.Condition("a route"))
			if err != nil {
				faults = append(faults, expr.Faults(when.Value, t.Name, err)...)
				used[n] = true // who knows
				continue
			}
			if have := s.cases[i]; !s.all && len(have) > 0 && have[len(have)-1].when == nil {
				continue // one before it takes all
			}
			holds, known := p.Const()
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
			faults = append(faults, fault(when.Value, "remove the case, or look for a misspelt type", "no event can match this case: it is false, or taken by a case before it, for every type"))
		}
	}
	if text := otherwise.Value.Text; text != routePass && text != routeDrop {
		s.otherwise = topic(otherwise.Value, "it is pass, drop or the name of a declared topic")
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
	case s.taken(typ) || s.drop:
	case s.otherwise != nil:
		if !slices.Contains(topics, s.otherwise[0]) {
			topics = append(topics, s.otherwise[0])
		}
	default:
		own = true
	}
	return topics, own
}

// taken reports whether each event of a type matches a case.
func (s *route) taken(typ int) bool {
	return slices.ContainsFunc(s.cases[typ], func(c routeCase) bool { return c.when == nil })
}

// Passes implements [Gate].
func (s *route) Passes(typ int) bool { return !s.on[typ] || !s.drop || len(s.cases[typ]) > 0 }

func (s *route) Reads(typ int) (paths [][]string) {
	for _, c := range s.cases[typ] {
		paths = appendPaths(paths, c.when)
	}
	return paths
}

func (s *route) Writes(int) [][]string { return nil }

func (s *route) Bind(layouts []*codec.Layout) error {
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

// Process sets To to a slice that is the stage's own, until the next event.
func (s *route) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	if !s.on[e.Type] {
		return pipeline.Pass, nil
	}
	s.scope.Reset(e.Taken, &e.View)
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
