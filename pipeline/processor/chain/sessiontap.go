package chain

import (
	"context"
	"slices"

	"millrace/pipeline"
	"millrace/pipeline/deadletter"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/processor/trace"
	"millrace/pipeline/topology"
)

// sessionTap shows the events of one session to the clients of [Taps]. The goroutine of
// the handler owns it.
type sessionTap struct {
	taps   *Taps
	pl     *topology.Pipeline
	stages *pipeline.Chain

	on      bool        // the chain calls watch
	choices []tapChoice // the clients that may receive the current event
	key     string      // the text form of the key of the current event
}

// tapChoice is the decision whether a client receives the current event. It is made at
// the first line that matches the filters of the client.
type tapChoice struct {
	client         *tapClient
	decided, taken bool
}

// session returns the sessionTap of a session; nil if clients cannot watch.
func (t *Taps) session(pl *topology.Pipeline, stages *pipeline.Chain) *sessionTap {
	if t == nil {
		return nil
	}
	return &sessionTap{taps: t, pl: pl, stages: stages}
}

// begin is called before each event.
func (s *sessionTap) begin(ctx context.Context, in *pipeline.Record, keys *keyformat.Reader) {
	watching := s.taps.watching.Load()
	if watching == nil {
		if s.on {
			s.on = false
			s.stages.Watch(nil)
		}
		return
	}
	if !s.on {
		s.on = true
		s.stages.Watch(s.watch)
	}
	s.choices, s.key = s.choices[:0], keys.Show(ctx, in)
	for _, c := range *watching {
		if matches(c.pipelines, s.pl.Name) && (c.key == nil || *c.key == s.key) {
			s.choices = append(s.choices, tapChoice{client: c})
		}
	}
}

// matches reports whether a filter contains a name. A nil filter contains all names.
func matches(filter []string, name string) bool {
	return filter == nil || slices.Contains(filter, name)
}

// watch is the [pipeline.Watch] of the chain.
func (s *sessionTap) watch(m pipeline.Moment, stage int, e *pipeline.Event, err error) {
	if len(s.choices) > 0 {
		s.show(s.pl.Stages[stage].Name, s.pl.Output[e.Type].ShortName(), func() trace.Line { return trace.NewLine(s.pl, m, stage, e, err) })
	}
}

// show sends a line to the clients whose filters match. It calls line at most once, and
// only if a client takes the event.
func (s *sessionTap) show(stage, typ string, line func() trace.Line) {
	var shown *trace.Line
	for i := range s.choices {
		c := &s.choices[i]
		if !matches(c.client.stages, stage) || !matches(c.client.types, typ) {
			continue
		}
		if !c.decided {
			c.decided, c.taken = true, c.client.take(s.taps.now())
		}
		if !c.taken {
			continue
		}
		if shown == nil {
			l := line()
			l.Key = s.key
			shown = &l
		}
		c.client.send(*shown, s.taps.dropped)
	}
}

// tombstone shows a tombstone, which no stage sees. passed reports whether it was
// written.
func (s *sessionTap) tombstone(in *pipeline.Record, passed bool, err error) {
	if !s.on {
		return
	}
	if err == nil {
		s.show(trace.StageTombstone, "", func() trace.Line { return trace.NewTombstone(s.pl, in, passed) })
	}
	s.end(in, deadletter.StageDecode, err)
}

// end is called after each event. It shows the errors that are not of a stage.
func (s *sessionTap) end(in *pipeline.Record, stage string, err error) {
	if !s.on {
		return
	}
	if err != nil && (stage == deadletter.StageDecode || stage == deadletter.StageEncode) {
		s.show(stage, "", func() trace.Line { return trace.NewFailure(s.pl, stage, in, err) })
	}
	for _, c := range s.choices {
		if c.taken {
			c.client.done()
		}
	}
	s.choices = s.choices[:0]
}
