package producer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/keyring"
)

// sender sends the events of a source and keeps account of each. One goroutine
// reads, encodes and writes; the writer calls back when Kafka has a record, and
// only then it counts as sent.
//
// Lines, and records that Kafka has: what is between them is in the ledger. For
// each line that was written it knows whether it was acknowledged, so at any
// time it can say up to which line nothing is missing.
type sender struct {
	encoder *event.Encoder
	writer  keyring.RecordWriter
	rejects *rejects
	console *console
	metrics *producerMetrics
	now     func() time.Time
	tick    <-chan time.Time // when to look at progress

	// patience is how long Kafka may acknowledge nothing while something is
	// under way, before the sender gives up.
	patience time.Duration

	ledger ledger
	chunk  []sentLine // those that are being encoded
}

// sentLine is a line between its encoding and its writing.
type sentLine struct {
	line    []byte
	at      position
	flight  *flight // nil if the line is empty
	subject string  // whose key it needs; "" if none
	err     error   // what is wrong with it
}

// Bad lines are told one by one, but not without end.
const maxFaultsShown = 20

// errNoProgress is why a sender gave up.
var errNoProgress = errors.New("no acknowledgement from Kafka")

// run sends everything the source gives. The context stops the reading; what
// was read by then is still sent. The outcome is complete in any case.
func (s *sender) run(ctx context.Context, source lineSource) *sendOutcome {
	began := s.now()
	writing, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	reading, stopReading := context.WithCancel(ctx)
	defer stopReading()
	s.ledger.failed = stopReading

	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		s.watch(ended, func(why error) {
			giveUp(why)
			stopReading()
		})
	})

	err := s.send(reading, writing, source)
	flushed := s.writer.Flush(writing)
	close(ended)
	watch.Wait()
	s.console.status("")

	out := s.ledger.outcome()
	out.rejects = s.rejects.paths
	out.took = s.now().Sub(began)
	if n := s.rejects.count - maxFaultsShown; n > 0 {
		s.console.printf("... and %d more bad lines", n)
	}
	closed := s.rejects.close()
	switch {
	case context.Cause(writing) != nil:
		out.err = context.Cause(writing) // and what failed, failed by that
	case out.err != nil: // a record failed
	case err != nil && ctx.Err() != nil:
		out.interrupted = true
	case err != nil:
		out.err = err
	case flushed != nil:
		out.err = flushed
	default:
		out.err = closed
	}
	if out.err == nil && out.unknown > 0 {
		out.err = fmt.Errorf("%d records were written, but nothing is known of them", out.unknown)
	}
	return out
}

// send reads until the source or the reading context ends.
func (s *sender) send(reading, writing context.Context, source lineSource) error {
	for {
		b, err := source.next(reading)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if b.long != wholeLines {
			if err := s.rejectLong(b); err != nil {
				return err
			}
			continue
		}
		// Where keys have to be made, that is for many lines at a time: each takes
		// the way to Kafka and back.
		many := 1
		if s.encoder.Ring != nil {
			many = len(b.ends)
		}
		for i := 0; i < len(b.ends); i += many {
			if reading.Err() != nil {
				return reading.Err()
			}
			if err := s.lines(writing, b, i, min(i+many, len(b.ends))); err != nil {
				return err
			}
		}
		if b.err != nil {
			return b.err
		}
	}
}

// lines sends some lines of a batch.
func (s *sender) lines(ctx context.Context, b *lineBatch, from, to int) error {
	s.chunk = s.chunk[:0]
	var subjects []string
	for i := from; i < to; i++ {
		start := 0
		if i > 0 {
			start = b.ends[i-1]
		}
		one := sentLine{line: b.data[start:b.ends[i]], at: position{b.input, b.first + i}}
		if len(bytes.TrimSpace(one.line)) > 0 {
			f := s.ledger.next()
			f.typ, f.buf, one.err = s.encoder.Encode(one.line, &f.record, f.buf)
			one.flight, one.subject = f, s.encoder.Subject
			if one.err == nil && one.subject != "" {
				subjects = append(subjects, one.subject)
			}
		}
		s.chunk = append(s.chunk, one)
	}
	if s.encoder.Ring != nil && len(subjects) > 0 {
		ensuring, cancel := context.WithTimeoutCause(ctx, s.patience, errNoProgress)
		err := s.encoder.Ring.Ensure(ensuring, subjects)
		cancel()
		if err != nil {
			return err
		}
	}
	for i := range s.chunk {
		if err := s.line(ctx, &s.chunk[i]); err != nil {
			return err
		}
	}
	return nil
}

// line writes a line that was encoded, or rejects it.
func (s *sender) line(ctx context.Context, one *sentLine) error {
	f := one.flight
	if f == nil {
		s.ledger.skip(one.at)
		return nil
	}
	if one.err == nil {
		f.buf, one.err = s.encoder.Seal(f.typ, one.subject, &f.record, f.buf)
		var fault *codec.PathError
		if one.err != nil && !errors.As(one.err, &fault) {
			return one.err // of the keys, not of the line
		}
	}
	if one.err != nil {
		s.metrics.countRejected(f.typ)
		s.ledger.reject(f, one.at)
		return s.reject(one.line, one.at, one.err)
	}
	s.ledger.written(f, one.at, s.metrics)
	s.writer.Write(ctx, &f.record, f.done)
	return nil
}

func (s *sender) reject(line []byte, at position, why error) error {
	if s.rejects.count < maxFaultsShown {
		s.console.printf("%s: %v", at, why)
	}
	return s.rejects.add(at.input, line, true)
}

func (s *sender) rejectLong(b *lineBatch) error {
	at := position{b.input, b.first}
	if b.long == longMore {
		return s.rejects.add(b.input, b.data, false)
	}
	s.metrics.countRejected(nil)
	s.ledger.rejectLong(at)
	return s.reject(b.data, at, fmt.Errorf("a line of more than %d MiB", maxLine>>20))
}

// watch shows progress and gives up when there is none.
func (s *sender) watch(ended <-chan struct{}, giveUp func(error)) {
	began := s.now()
	last, since := 0, began
	for {
		select {
		case <-ended:
			return
		case <-s.tick:
		}
		sent, rejected, under := s.ledger.progress()
		now := s.now()
		if sent != last || under == 0 {
			last, since = sent, now
		}
		if wait := now.Sub(since); wait >= s.patience {
			giveUp(fmt.Errorf("%w in %v, with %d records under way", errNoProgress, wait.Round(time.Second), under))
			return
		}
		text := fmt.Sprintf("%d sent, %.0f per second", sent, perSecond(sent, now.Sub(began)))
		if rejected > 0 {
			text += fmt.Sprintf(", %d bad lines", rejected)
		}
		s.console.status(text)
	}
}

func perSecond(n int, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

// position is a line of an input.
type position struct {
	input string
	line  int
}

func (p position) String() string {
	if p.input == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", p.input, p.line)
}

// flight is one record between Write and its acknowledgement. Flights are used
// again.
type flight struct {
	record pipeline.Record
	buf    []byte
	typ    *event.Type
	number int64 // in the order of the lines
	done   func(error)
}

// ledger accounts for every line. The sender enters lines, the writer's
// callbacks strike records off, each from their own goroutine.
type ledger struct {
	failed func() // called at the first record that Kafka did not take

	mu       sync.Mutex
	free     []*flight
	open     []entry // lines that were written; those before head are struck off
	head     int
	first    int64    // number of open[0]
	through  position // up to here nothing is missing
	sent     map[*event.Type]int
	total    int
	rejected int
	under    int // records whose fate is open
	lost     int // records that Kafka did not take
	err      error
}

type entry struct {
	at   position
	done bool
}

func (l *ledger) next() *flight {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.free); n > 0 {
		f := l.free[n-1]
		l.free = l.free[:n-1]
		return f
	}
	return new(flight)
}

// written enters a record that is about to be written.
func (l *ledger) written(f *flight, at position, m *producerMetrics) {
	if f.done == nil {
		f.done = func(err error) { l.acknowledged(f, m, err) }
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f.number = l.first + int64(len(l.open))
	l.open = append(l.open, entry{at: at})
	l.under++
}

func (l *ledger) acknowledged(f *flight, m *producerMetrics, err error) {
	if err != nil {
		m.countFailed(f.typ)
	} else {
		m.countSent(f.typ)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.under--
	if err != nil {
		if l.err == nil {
			l.err = fmt.Errorf("%s: Kafka did not take the event: %w", l.open[f.number-l.first].at, err)
			l.failed()
		}
		l.lost++
		return // its line stays open for ever
	}
	l.total++
	if l.sent == nil {
		l.sent = map[*event.Type]int{}
	}
	l.sent[f.typ]++
	l.strike(f.number)
	l.free = append(l.free, f)
}

// strike marks a line as done and moves on to the first that is not.
func (l *ledger) strike(number int64) {
	l.open[number-l.first].done = true
	for l.head < len(l.open) && l.open[l.head].done {
		l.through = l.open[l.head].at
		l.head++
	}
	if l.head > 1024 && l.head > len(l.open)/2 {
		l.first += int64(l.head)
		l.open = l.open[:copy(l.open, l.open[l.head:])]
		l.head = 0
	}
}

// skip enters a line that needs no acknowledgement.
func (l *ledger) skip(at position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head == len(l.open) {
		l.through = at
		return
	}
	l.open = append(l.open, entry{at, true})
}

func (l *ledger) reject(f *flight, at position) {
	l.rejectLong(at)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = append(l.free, f)
}

func (l *ledger) rejectLong(at position) {
	l.skip(at)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rejected++
}

// progress returns how many were sent and rejected so far, and how many are
// under way.
func (l *ledger) progress() (sent, rejected, under int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total, l.rejected, l.under
}

// sendOutcome is how a run ended.
type sendOutcome struct {
	sent        map[string]int // by type: what Kafka acknowledged
	total       int
	rejected    int
	failed      int // what Kafka did not take
	unknown     int // what was under way when the sender gave up
	through     position
	rejects     []string // files
	took        time.Duration
	interrupted bool
	err         error
}

func (l *ledger) outcome() *sendOutcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &sendOutcome{sent: map[string]int{}, total: l.total, rejected: l.rejected, failed: l.lost, unknown: l.under, through: l.through, err: l.err}
	for t, n := range l.sent {
		out.sent[t.Name] += n
	}
	return out
}

// rejects keeps bad lines byte for byte, in a file that is made for the first
// of them.
type rejects struct {
	path func(input string) string
	// keep are the files that are read: they must not be written over.
	keep []string

	paths   []string // that were made
	count   int
	current string
	file    *os.File
	w       *bufio.Writer
	ragged  bool // what was written last lacks its newline
}

// add keeps a line, or with more of the one before if start is false.
func (r *rejects) add(input string, line []byte, start bool) error {
	if start {
		r.count++
	}
	if path := r.path(input); r.file == nil || path != r.current {
		if err := r.open(path); err != nil {
			return err
		}
	}
	if start && r.ragged {
		_ = r.w.WriteByte('\n') // an error stays in w and comes with the next call
	}
	if _, err := r.w.Write(line); err != nil {
		return fmt.Errorf("keeping a bad line: %w", err)
	}
	r.ragged = len(line) > 0 && line[len(line)-1] != '\n'
	return nil
}

func (r *rejects) open(path string) error {
	if err := r.close(); err != nil {
		return err
	}
	if to, err := os.Stat(path); err == nil {
		for _, name := range r.keep {
			if from, err := os.Stat(name); err == nil && os.SameFile(from, to) {
				return fmt.Errorf("--rejects: %s is read at the same time; name another file", path)
			}
		}
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("keeping a bad line: %w; --rejects names another file", err)
	}
	r.file, r.w, r.current, r.ragged = f, bufio.NewWriter(f), path, false
	r.paths = append(r.paths, path)
	return nil
}

func (r *rejects) close() error {
	if r.file == nil {
		return nil
	}
	if r.ragged {
		_ = r.w.WriteByte('\n') // an error stays in w for Flush
	}
	err := errors.Join(r.w.Flush(), r.file.Close())
	r.file = nil
	if err != nil {
		return fmt.Errorf("keeping bad lines in %s: %w", r.current, err)
	}
	return nil
}

// console is stderr for messages and, on a terminal, one line of status below
// them.
type console struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	shown    string
}

func (c *console) printf(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := fmt.Sprintf(format, args...) + "\n"
	if c.shown != "" {
		text = "\r\x1b[K" + text + c.shown
	}
	_, _ = io.WriteString(c.w, text) // nobody left to tell
}

func (c *console) status(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.terminal || text == c.shown {
		return
	}
	c.shown = text
	_, _ = io.WriteString(c.w, "\r\x1b[K"+text)
}

// producerMetrics counts events by type and by what became of them.
type producerMetrics struct {
	events *prometheus.CounterVec
	sent   map[*event.Type]prometheus.Counter
}

func newProducerMetrics(reg prometheus.Registerer, types []*event.Type) *producerMetrics {
	m := &producerMetrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "millrace_producer_events_total",
		Help: "Events by type and result: sent (Kafka has it), rejected (a bad line), failed (Kafka did not take it).",
	}, []string{"type", "result"}), map[*event.Type]prometheus.Counter{}}
	reg.MustRegister(m.events)
	for _, t := range types {
		m.sent[t] = m.events.WithLabelValues(t.Name, "sent")
	}
	return m
}

func (m *producerMetrics) countSent(t *event.Type) { m.sent[t].Inc() }

func (m *producerMetrics) countFailed(t *event.Type) {
	m.events.WithLabelValues(t.Name, "failed").Inc()
}

// countRejected counts a bad line; t is nil if it did not tell its type.
func (m *producerMetrics) countRejected(t *event.Type) {
	name := "unknown"
	if t != nil {
		name = t.Name
	}
	m.events.WithLabelValues(name, "rejected").Inc()
}
