package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"millrace/pipeline"
)

var errBad = pipeline.Reject(pipeline.ReasonExpression, "bad")

// split turns one event into n. If bad is set, it rejects the rest after the first.
type split struct {
	n   int
	bad bool
}

func (s split) Process(context.Context, *pipeline.Event) (pipeline.Verdict, error) {
	panic("the chain called Process of a Splitter")
}

func (s split) Split(_ context.Context, e *pipeline.Event, next func(*pipeline.Event) error) error {
	for i := range s.n {
		if s.bad && i == 1 {
			return errBad
		}
		e.Type = i
		if err := next(e); err != nil {
			return err
		}
	}
	if s.bad {
		return errBad
	}
	return nil
}

func verdict(v pipeline.Verdict, err error) pipeline.Stage {
	return pipeline.StageFunc(func(context.Context, *pipeline.Event) (pipeline.Verdict, error) { return v, err })
}

func TestChainStopsAnEventAtTheStageThatDropsOrRejectsIt(t *testing.T) {
	pass, drop, reject := verdict(pipeline.Pass, nil), verdict(pipeline.Drop, nil), verdict(pipeline.Drop, errBad)
	down := verdict(pipeline.Drop, errors.New("the registry is down"))
	panics := pipeline.StageFunc(func(context.Context, *pipeline.Event) (pipeline.Verdict, error) { panic("oops") })
	tests := []struct {
		name    string
		stages  []pipeline.Stage
		onError pipeline.OnError
		out     []int // types of the events that pass the chain
		class   pipeline.Class
		err     string
	}{
		{name: "no stages", out: []int{7}},
		{name: "passes", stages: []pipeline.Stage{pass, pass}, out: []int{7}},
		{name: "filtered", stages: []pipeline.Stage{pass, drop, pass}},
		{name: "rejected", stages: []pipeline.Stage{pass, reject}, class: pipeline.ClassReject, err: "stage 1: expression: bad"},
		{name: "rejected by a panic", stages: []pipeline.Stage{panics}, class: pipeline.ClassReject, err: "stage 0: panic: panic: oops"},
		{name: "aborts the batch", stages: []pipeline.Stage{down}, class: pipeline.ClassAbort, err: "stage 0: the registry is down"},
		{name: "aborts the batch regardless of on_error", stages: []pipeline.Stage{down}, onError: pipeline.Skip, class: pipeline.ClassAbort, err: "stage 0: the registry is down"},
		{name: "skips a stage", stages: []pipeline.Stage{reject, pass}, onError: pipeline.Skip, out: []int{7}},
		{name: "stops the worker", stages: []pipeline.Stage{reject}, onError: pipeline.Stop, class: pipeline.ClassFatal, err: "stage 0 rejected an event, and its on_error is stop: expression: bad"},
		{name: "split", stages: []pipeline.Stage{split{n: 3}, pass}, out: []int{0, 1, 2}},
		{name: "split twice", stages: []pipeline.Stage{split{n: 2}, split{n: 2}}, out: []int{0, 1, 0, 1}},
		{name: "split into no events", stages: []pipeline.Stage{split{n: 0}}},
		{name: "rejected after a split", stages: []pipeline.Stage{split{n: 2}, reject}, class: pipeline.ClassReject, err: "stage 1: expression: bad"},
		{name: "rejected by a split", stages: []pipeline.Stage{split{n: 0, bad: true}}, class: pipeline.ClassReject, err: "stage 0: expression: bad"},
		{name: "skips a split", stages: []pipeline.Stage{split{n: 0, bad: true}, pass}, onError: pipeline.Skip, out: []int{7}},
		{name: "cannot skip a split that has started", stages: []pipeline.Stage{split{n: 3, bad: true}}, onError: pipeline.Skip, out: []int{0}, class: pipeline.ClassReject, err: "stage 0: expression: bad"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var c pipeline.Chain
			for i, s := range test.stages {
				c.Add(fmt.Sprint(i), s, test.onError)
			}
			var out []int
			err := c.Process(context.Background(), &pipeline.Event{Type: 7}, func(e *pipeline.Event) error {
				out = append(out, e.Type)
				return nil
			})
			if !slices.Equal(out, test.out) {
				t.Errorf("events of types %v passed, want %v", out, test.out)
			}
			if got := fmt.Sprint(err); test.err == "" && err != nil || test.err != "" && got != test.err {
				t.Errorf("error %v, want %q", err, test.err)
			}
			if err != nil && pipeline.ClassOf(err) != test.class {
				t.Errorf("error class %v, want %v", pipeline.ClassOf(err), test.class)
			}
		})
	}
}

// Every event that enters a stage passes, is filtered or is rejected, and every
// event that passes enters the next stage.
func TestChainCountsEveryEventAtEveryStage(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c pipeline.Chain
		n := rapid.IntRange(0, 5).Draw(t, "stages")
		for i := range n {
			onError := pipeline.OnError(rapid.IntRange(0, 1).Draw(t, "on error"))
			var s pipeline.Stage = pipeline.StageFunc(func(context.Context, *pipeline.Event) (pipeline.Verdict, error) {
				switch rapid.IntRange(0, 5).Draw(t, "verdict") {
				case 0:
					return pipeline.Drop, nil
				case 1:
					return pipeline.Drop, errBad
				}
				return pipeline.Pass, nil
			})
			if rapid.IntRange(0, 3).Draw(t, "splits") == 0 {
				s = split{n: rapid.IntRange(0, 3).Draw(t, "parts"), bad: rapid.Bool().Draw(t, "bad")}
			}
			c.Add(fmt.Sprint(i), s, onError)
		}
		events, out := rapid.IntRange(0, 20).Draw(t, "events"), 0
		for range events {
			err := c.Process(context.Background(), &pipeline.Event{}, func(*pipeline.Event) error { out++; return nil })
			if err != nil && pipeline.ClassOf(err) != pipeline.ClassReject {
				t.Fatal(err)
			}
		}
		in := events
		c.Counts(func(stage string, n pipeline.StageCounts) {
			sum := n.Passed + n.Filtered
			for _, rejected := range n.Rejected {
				sum += rejected
			}
			if n.In != in || n.In+n.Added != sum {
				t.Errorf("stage %s: %+v, but %d events passed the previous stage", stage, n, in)
			}
			in = n.Passed
		})
		if in != out {
			t.Errorf("the last stage counted %d passed events, but out was called %d times", in, out)
		}
	})
}

func TestWatchObservesEventsAroundEachStage(t *testing.T) {
	pass, drop, reject := verdict(pipeline.Pass, nil), verdict(pipeline.Drop, nil), verdict(pipeline.Drop, errBad)
	tests := []struct {
		name    string
		stages  []pipeline.Stage
		onError pipeline.OnError
		want    string
	}{
		{name: "passed", stages: []pipeline.Stage{pass, pass}, want: "entering 0, passed 0, entering 1, passed 1"},
		{name: "filtered", stages: []pipeline.Stage{pass, drop, pass}, want: "entering 0, passed 0, entering 1, filtered 1"},
		{name: "failed", stages: []pipeline.Stage{reject, pass}, want: "entering 0, failed 0: bad"},
		{name: "skipped", stages: []pipeline.Stage{reject, pass}, onError: pipeline.Skip, want: "entering 0, skipped 0, entering 1, passed 1"},
		{name: "stopped", stages: []pipeline.Stage{reject, pass}, onError: pipeline.Stop, want: "entering 0, failed 0: bad"},
		{name: "split", stages: []pipeline.Stage{split{n: 2}, pass}, want: "entering 0, passed 0, entering 1, passed 1, passed 0, entering 1, passed 1"},
		{name: "split into no events", stages: []pipeline.Stage{split{}, pass}, want: "entering 0, filtered 0"},
		{name: "split that fails halfway", stages: []pipeline.Stage{split{n: 2, bad: true}}, want: "entering 0, passed 0, failed 0: bad"},
	}
	moments := []string{"entering", "passed", "filtered", "skipped", "failed"}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := &pipeline.Chain{}
			for i, s := range test.stages {
				c.Add(fmt.Sprint(i), s, test.onError)
			}
			var saw []string
			c.Watch(func(m pipeline.Moment, stage int, e *pipeline.Event, err error) {
				text := fmt.Sprint(moments[m], " ", stage)
				if errors.Is(err, errBad) {
					text += ": bad"
				}
				saw = append(saw, text)
			})
			_ = c.Process(t.Context(), &pipeline.Event{}, func(*pipeline.Event) error { return nil })
			if got := strings.Join(saw, ", "); got != test.want {
				t.Errorf("observed %s\nwant     %s", got, test.want)
			}
			c.Watch(nil)
			n := len(saw)
			_ = c.Process(t.Context(), &pipeline.Event{}, func(*pipeline.Event) error { return nil })
			if len(saw) != n {
				t.Error("the removed watch was called")
			}
		})
	}
}
