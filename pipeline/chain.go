package pipeline

import (
	"context"
	"fmt"
	"runtime/debug"
)

// An Event is a record while a chain processes it. Type is the index of the event
// type in the pipeline's list of types. The View shows the event's body in the
// layout of that type.
type Event struct {
	*Record
	Type int
	View

	// KeyText is the text form of the record's key. It is the key itself, unless the topic
	// has another format of keys.
	KeyText []byte
	// NewKey replaces the record's key in the output; nil keeps the key. It is a text form,
	// which is converted to the format of the topic that is written.
	NewKey []byte
	// To names the topics to write to; nil means the pipeline's own topic.
	To []string
	// Delete is set on an event that a stage made a deletion (see [Delete]) while it
	// leaves the chain: a tombstone is written under its key.
	Delete bool

	// OldType is the index of the writer's schema in the pipeline's list of old
	// shapes, or -1 if it is not in the list. If it is at least 0, Old shows the
	// body in the writer's schema, and View shows the body resolved to the
	// current schema.
	Old     View
	OldType int

	// Arena is the memory for bytes that stages create for this event. A stage
	// appends to it and keeps the appended part. It is reset with the event.
	Arena []byte
}

// A Verdict is a stage's decision about an event.
type Verdict uint8

const (
	// Pass hands the event to the next stage.
	Pass Verdict = iota
	// Drop removes the event intentionally. It is counted as filtered.
	Drop
	// Delete makes the event a deletion of its key. It leaves the chain with
	// [Event].Delete set and reaches no further stage. It is counted as passed.
	Delete
)

// A Stage handles one event. It may change the event, and its verdict decides
// whether the event continues. An error of [ClassReject] sends the original event
// to the dead letters; the stage must leave the event unchanged in that case. Any
// other error aborts the batch.
//
// A session owns its stages: calls of one stage never overlap.
type Stage interface {
	Process(ctx context.Context, e *Event) (Verdict, error)
}

// StageFunc makes a function a [Stage].
type StageFunc func(ctx context.Context, e *Event) (Verdict, error)

// Process calls f.
func (f StageFunc) Process(ctx context.Context, e *Event) (Verdict, error) { return f(ctx, e) }

// A Splitter is a stage that turns one event into several. A chain calls Split
// instead of Process.
type Splitter interface {
	Stage
	// Split calls next for each resulting event, in order. It returns an error of
	// next immediately. It may change e between the calls. If it never calls next,
	// e is counted as filtered.
	Split(ctx context.Context, e *Event, next func(*Event) error) error
}

// OnError is the handling of an event that a stage rejects.
type OnError uint8

const (
	// DeadLetter writes the original event to the dead letters.
	DeadLetter OnError = iota
	// Skip passes the event unchanged to the next stage.
	Skip
	// Stop stops the worker, because an operator must check the state.
	Stop
)

// StageCounts counts the events that reached one stage, by outcome:
// In + Added = Passed + Filtered + the sum of Rejected. Passed includes Skipped.
// Added counts the events that a [Splitter] created in addition to the original.
type StageCounts struct {
	In, Added, Passed, Filtered, Skipped int

	Rejected map[Reason]int
}

// A Chain runs stages in order. An event stops at the stage that drops or rejects
// it. The chain counts outcomes; the owner reads and clears the counts at the end
// of each batch.
//
// A session owns its Chain: all methods are called from one goroutine at a time.
type Chain struct {
	links   []link
	watch   Watch // nil: not watched
	dropped int   // index of the stage that filtered an event most recently
}

// A Moment is when a [Watch] is called.
type Moment uint8

const (
	// Entering: the stage is about to handle the event. The other moments are
	// outcomes.
	Entering Moment = iota
	// Passed: the event continues. A [Splitter] reports each of its parts.
	Passed
	// Filtered: the stage dropped the event.
	Filtered
	// Skipped: the stage failed, and the event continues unchanged (see [Skip]).
	Skipped
	// Failed: the stage failed, and the event does not continue.
	Failed
)

// A Watch observes the events before and after each stage of a [Chain]. stage is
// the index of the stage. A Watch must not change the event, which is valid only
// during the call.
type Watch func(m Moment, stage int, e *Event, err error)

// Watch makes w observe all further events; nil stops the observation. Only the
// goroutine that calls Process may call it, between two calls of Process.
func (c *Chain) Watch(w Watch) { c.watch = w }

func (c *Chain) saw(m Moment, stage int, e *Event, err error) {
	if c.watch != nil {
		c.watch(m, stage, e, err)
	}
}

type link struct {
	name     string
	stage    Stage
	splitter Splitter // the stage, if it is a Splitter
	onError  OnError
	counts   StageCounts

	// State of the event that is being split.
	next  func(*Event) error
	calls int   // number of calls of next
	later error // error of a stage after this one
	ctx   context.Context
	out   func(*Event) error
}

// Add appends a stage. Its name must be unique in the chain.
func (c *Chain) Add(name string, s Stage, onError OnError) {
	at := len(c.links)
	l := link{name: name, stage: s, onError: onError, counts: StageCounts{Rejected: map[Reason]int{}}}
	if splitter, ok := s.(Splitter); ok {
		l.splitter = splitter
		l.next = func(e *Event) error { return c.split(at, e) } // allocated once, not per event
	}
	c.links = append(c.links, l)
}

// Each calls f for every stage, in order.
func (c *Chain) Each(f func(name string, s Stage)) {
	for i := range c.links {
		f(c.links[i].name, c.links[i].stage)
	}
}

// LastFilter returns the name of the stage that filtered an event most recently. If
// the last call of Process produced no event and no error, this stage dropped it.
func (c *Chain) LastFilter() string { return c.links[c.dropped].name }

// A StageError adds the name of the failed stage to an error.
type StageError struct {
	Stage string
	Err   error
}

func (e *StageError) Error() string { return "stage " + e.Stage + ": " + e.Err.Error() }
func (e *StageError) Unwrap() error { return e.Err }

// A PanicError is the error for a panic in a stage. The event is rejected. Stack is
// for the log.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Process runs the event through the stages and calls out for each event that
// passes the last stage: at most one, or more if a [Splitter] is in the chain. The
// event and its bytes are valid only during the call of out. An error of a stage
// is a [*StageError]. After an error, the events that out received must not take
// effect.
func (c *Chain) Process(ctx context.Context, e *Event, out func(*Event) error) error {
	return c.from(ctx, 0, e, out)
}

// from runs the event through the stages, starting at index at. A panic of a stage
// is handled like a returned error. One deferred recover covers all stages.
func (c *Chain) from(ctx context.Context, at int, e *Event, out func(*Event) error) (err error) {
	inStage := false
	defer func() {
		if !inStage {
			return
		}
		if p := recover(); p != nil {
			var skipped bool
			if skipped, err = c.stopped(at, e, panicked(p)); skipped {
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
		if failure == nil && v == Pass { // the common case
			l.counts.Passed++
			c.saw(Passed, at, e, nil)
			continue
		}
		if failure == nil && v == Delete {
			return c.deleted(at, e, out)
		}
		if skipped, err := c.stopped(at, e, failure); !skipped {
			return err
		}
	}
	return out(e)
}

// deleted ends the chain for an event that a stage made a deletion.
func (c *Chain) deleted(at int, e *Event, out func(*Event) error) error {
	c.links[at].counts.Passed++
	e.Delete = true
	c.saw(Passed, at, e, nil)
	err := out(e)
	e.Delete = false // a Splitter uses the event again
	return err
}

// stopped counts an event that a stage dropped (err is nil) or rejected. The event
// continues with the next stage if skipped.
func (c *Chain) stopped(at int, e *Event, err error) (skipped bool, _ error) {
	l := &c.links[at]
	if err == nil {
		l.counts.Filtered++
		c.dropped = at
		c.saw(Filtered, at, e, nil)
		return false, nil
	}
	if skipped, err = l.failed(err, l.onError); !skipped {
		c.saw(Failed, at, e, err)
		return false, err
	}
	l.counts.Passed++
	c.saw(Skipped, at, e, nil)
	return true, nil
}

// failed counts an error of the stage. The event continues if skipped.
func (l *link) failed(err error, onError OnError) (skipped bool, _ error) {
	reject, ok := rejection(err)
	switch {
	case !ok:
	case onError == Skip && !reject.Final:
		l.counts.Skipped++
		return true, nil
	case onError == Stop:
		return false, Fatal("stage %s rejected an event, and its on_error is stop: %w", l.name, err)
	default:
		l.counts.Rejected[reject.Reason]++
	}
	return false, &StageError{l.name, err}
}

// splitAll runs the Splitter at index at and the stages after it.
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
		l.counts.Added++ // counts the rejected rest; the other parts passed
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

// split counts one part that the Splitter at index at made, and runs it through the
// stages after it.
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

// panicked returns the error for a recovered panic of a stage.
func panicked(p any) error {
	return &RejectError{Reason: ReasonPanic, Err: &PanicError{p, debug.Stack()}}
}

// Counts calls f with the counts of each stage since the last call, and clears
// them. A nil f discards the counts. Discard the counts of an aborted batch,
// because its events will be processed again.
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
