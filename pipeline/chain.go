package pipeline

import (
	"context"
	"fmt"
	"runtime/debug"
)

// An Event is one record on its way through a chain. Type is the index of the
// event's type among the types of its pipeline; the view is of the event's
// body, laid out for that type.
type Event struct {
	*Record
	Type int
	View

	// NewKey replaces the record's key on what is written; nil leaves it.
	NewKey []byte
	// To names the topics to write to; nil is the pipeline's own.
	To []string

	// Old is the body as an older writer wrote it, and OldType which of the
	// pipeline's old shapes it has; -1 if the writer's schema is no such shape.
	// The view above is then of the body resolved to our schema.
	Old     View
	OldType int

	// Arena holds what stages make for this event: append to it and keep the
	// part appended. It is reset with the event.
	Arena []byte
}

// A Verdict is what a stage says of an event.
type Verdict uint8

const (
	// Pass hands the event to the next stage.
	Pass Verdict = iota
	// Drop ends the event's way here, on purpose and counted: filtered.
	Drop
)

// A Stage handles one event. It may change the event; it says whether the event
// goes on. An error of [ClassReject] sends the event, as it came in, to the dead
// letters; any other error aborts the batch. After an error of [ClassReject] the
// event has to be as it was.
//
// A session owns its stages: no two calls of one stage overlap.
type Stage interface {
	Process(ctx context.Context, e *Event) (Verdict, error)
}

// StageFunc is a function as a [Stage].
type StageFunc func(ctx context.Context, e *Event) (Verdict, error)

// Process calls f.
func (f StageFunc) Process(ctx context.Context, e *Event) (Verdict, error) { return f(ctx, e) }

// A Splitter is a stage that makes several events of one. A chain calls Split
// instead of Process.
type Splitter interface {
	Stage
	// Split calls next with each of the events that e becomes, in order, and
	// returns its error at once if there is one. It may change e for each call.
	// If it calls next not at all, e was filtered.
	Split(ctx context.Context, e *Event, next func(*Event) error) error
}

// OnError says what becomes of an event that a stage rejects.
type OnError uint8

const (
	// DeadLetter writes the event, as it came in, to the dead letters.
	DeadLetter OnError = iota
	// Skip leaves the stage out for this event, which goes on as it was.
	Skip
	// Stop ends the worker: its state needs a person to look at it.
	Stop
)

// StageCounts is what became of the events that reached one stage:
// In + Added = Passed + Filtered + the sum of Rejected. Skipped events are
// among the passed.
type StageCounts struct {
	In, Added, Passed, Filtered, Skipped int

	Rejected map[Reason]int
}

// A Chain runs stages in order and stops an event where a stage drops or
// rejects it. It counts what it does; the counts of a batch are read, and
// cleared, when the batch has ended.
type Chain struct {
	links   []link
	watch   Watch // nil if nobody does
	dropped int   // the stage that filtered last
}

// A Moment is when a [Watch] is called.
type Moment uint8

const (
	// Entering is before a stage handles the event. The others say what came of it.
	Entering Moment = iota
	// Passed is once for each event that goes on: for a [Splitter], its parts.
	Passed
	// Filtered is when the stage dropped it.
	Filtered
	// Skipped is when the stage failed on it and is told to let it go on as it was.
	Skipped
	// Failed is when the stage failed on it, and it does not go on.
	Failed
)

// A Watch looks at events around the stages of a [Chain], by number. It must not
// change them, and they are valid only during the call.
type Watch func(m Moment, stage int, e *Event, err error)

// Watch has w look at the events that follow; nil ends that. It is for the
// goroutine that calls Process, between its calls.
func (c *Chain) Watch(w Watch) { c.watch = w }

func (c *Chain) saw(m Moment, stage int, e *Event, err error) {
	if c.watch != nil {
		c.watch(m, stage, e, err)
	}
}

type link struct {
	name     string
	stage    Stage
	splitter Splitter // the stage, if it is one
	onError  OnError
	counts   StageCounts

	// Of the event that is being split.
	next  func(*Event) error
	calls int   // of next
	later error // of a stage behind this one
	ctx   context.Context
	out   func(*Event) error
}

// Add appends a stage under a name that is unique in the chain.
func (c *Chain) Add(name string, s Stage, onError OnError) {
	at := len(c.links)
	l := link{name: name, stage: s, onError: onError, counts: StageCounts{Rejected: map[Reason]int{}}}
	if splitter, ok := s.(Splitter); ok {
		l.splitter = splitter
		l.next = func(e *Event) error { return c.split(at, e) } // once, not per event
	}
	c.links = append(c.links, l)
}

// Each calls f with the stages, in order.
func (c *Chain) Each(f func(name string, s Stage)) {
	for i := range c.links {
		f(c.links[i].name, c.links[i].stage)
	}
}

// Dropped returns the stage that filtered an event last: the one of an event that
// has just come through, if nothing came out of it.
func (c *Chain) Dropped() string { return c.links[c.dropped].name }

// A StageError says which stage of a chain an error came from.
type StageError struct {
	Stage string
	Err   error
}

func (e *StageError) Error() string { return "stage " + e.Stage + ": " + e.Err.Error() }
func (e *StageError) Unwrap() error { return e.Err }

// A PanicError is what a stage's panic becomes: a rejection of the event, with
// the stack for the log.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Process runs the event through the stages and calls out with each event that
// comes out of the last: one, none, or as many as a [Splitter] made. The event
// and its bytes are valid only during the call. An error of a stage is a
// [*StageError]; what was handed to out before it must then not take effect.
func (c *Chain) Process(ctx context.Context, e *Event, out func(*Event) error) error {
	return c.from(ctx, 0, e, out)
}

// from runs the event through the stages from a number on. A panic of one of
// them is as if it had returned the error; one recover does for all of them.
func (c *Chain) from(ctx context.Context, at int, e *Event, out func(*Event) error) (err error) {
	inStage := false
	defer func() {
		if !inStage {
			return
		}
		if p := recover(); p != nil {
			var on bool
			if on, err = c.stopped(at, e, panicked(p)); on {
				err = c.from(ctx, at+1, e, out)
			}
		}
	}()
	for ; at < len(c.links); at++ {
		l := &c.links[at]
		l.counts.In++
		c.saw(Entering, at, e, nil)
		if l.splitter != nil {
			return c.splitAll(ctx, at, e, out)
		}
		inStage = true
		v, failure := l.stage.Process(ctx, e)
		inStage = false
		if failure == nil && v != Drop { // as for nearly all
			l.counts.Passed++
			c.saw(Passed, at, e, nil)
			continue
		}
		if on, err := c.stopped(at, e, failure); !on {
			return err
		}
	}
	return out(e)
}

// stopped counts an event that a stage dropped, or failed on if there is an error. It
// goes on all the same if on.
func (c *Chain) stopped(at int, e *Event, err error) (on bool, _ error) {
	l := &c.links[at]
	if err == nil {
		l.counts.Filtered++
		c.dropped = at
		c.saw(Filtered, at, e, nil)
		return false, nil
	}
	skipped, err := l.failed(err, l.onError)
	if !skipped {
		c.saw(Failed, at, e, err)
		return false, err
	}
	l.counts.Passed++
	c.saw(Skipped, at, e, nil)
	return true, nil
}

// failed counts a stage's error. The event goes on if skipped.
func (l *link) failed(err error, onError OnError) (skipped bool, _ error) {
	reject, ok := rejection(err)
	switch {
	case !ok:
	case onError == Skip:
		l.counts.Skipped++
		return true, nil
	case onError == Stop:
		return false, Fatal("stage %s is told to stop at a bad event: %w", l.name, err)
	default:
		l.counts.Rejected[reject.Reason]++
	}
	return false, &StageError{l.name, err}
}

func (c *Chain) splitAll(ctx context.Context, at int, e *Event, out func(*Event) error) error {
	l := &c.links[at]
	l.calls, l.later, l.ctx, l.out = 0, nil, ctx, out
	defer func() { l.ctx, l.out = nil, nil }()
	err := splitProcess(ctx, l.splitter, e, l.next)
	if l.later != nil {
		return l.later
	}
	if err == nil {
		if l.calls == 0 {
			l.counts.Filtered++
			c.dropped = at
			c.saw(Filtered, at, e, nil)
		}
		return nil
	}
	onError := l.onError
	if l.calls > 0 {
		l.counts.Added++ // the rejected rest, beside the parts that went on
		if onError == Skip {
			onError = DeadLetter
		}
	}
	skipped, err := l.failed(err, onError)
	if !skipped {
		c.saw(Failed, at, e, err)
		return err
	}
	if err := l.next(e); err != nil {
		return l.later
	}
	return err
}

func (c *Chain) split(at int, e *Event) error {
	l := &c.links[at]
	if l.calls++; l.calls > 1 {
		l.counts.Added++
	}
	l.counts.Passed++
	c.saw(Passed, at, e, nil)
	if err := c.from(l.ctx, at+1, e, l.out); err != nil {
		l.later = err
		return err
	}
	return nil
}

func splitProcess(ctx context.Context, s Splitter, e *Event, next func(*Event) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked(p)
		}
	}()
	return s.Split(ctx, e, next)
}

// panicked is the error that a stage's panic becomes.
func panicked(p any) error { return &RejectError{ReasonPanic, &PanicError{p, debug.Stack()}} }

// Counts calls f with each stage's counts since the last call, and clears them.
// Counts of a batch that was aborted are to be dropped: its events come again.
func (c *Chain) Counts(f func(stage string, n StageCounts)) {
	for i := range c.links {
		l := &c.links[i]
		if f != nil {
			f(l.name, l.counts)
		}
		rejected := l.counts.Rejected
		clear(rejected)
		l.counts = StageCounts{Rejected: rejected}
	}
}
