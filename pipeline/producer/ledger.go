package producer

import (
	"fmt"
	"sync"
	"time"

	"millrace/pipeline"
	"millrace/pipeline/event"
	"millrace/pipeline/kafka"
)

// position is a line of an input.
type position struct {
	input string
	line  int // from 1
}

func (p position) String() string {
	if p.input == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", p.input, p.line)
}

// flight is a record between its encoding and its acknowledgement. Flights are
// reused. The sender owns a flight until it writes the record, then the writer does,
// until it calls done.
type flight struct {
	record pipeline.Record
	buf    []byte // of the record's key and value
	typ    *event.Type
	number int64  // of the line, counted from the first
	line   []byte // a copy, for the rejects file if Kafka refuses the record
	done   func(error)
}

// ledger accounts for every line, so it knows at any time the line up to which
// nothing is missing. The sender adds lines from its goroutine, the writer's
// callbacks mark them as done from others.
type ledger struct {
	failed func() // called after the first record that failed; set before the first line

	mu       sync.Mutex // guards the fields below
	free     []*flight
	open     []entry // the lines from number first on; those before head are done
	head     int
	first    int64    // number of open[0]
	through  position // every line up to this one is done
	sent     map[*event.Type]int
	total    int       // acknowledged records
	rejected int       // bad lines
	inFlight int       // records without a result
	lost     int       // failed records
	refused  []refusal // records that Kafka refused, whose lines are not rejected yet
	err      error
}

// refusal is a record that Kafka refused for its content.
type refusal struct {
	flight *flight
	at     position
	why    error
}

// entry is a line.
type entry struct {
	at   position
	done bool
}

// next returns a flight for a record.
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

// written adds a line whose record is about to be written.
func (l *ledger) written(f *flight, at position, m *producerMetrics) {
	if f.done == nil {
		f.done = func(err error) { l.acknowledged(f, m, err) }
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f.number = l.first + int64(len(l.open))
	l.open = append(l.open, entry{at: at})
	l.inFlight++
}

// acknowledged takes the result of a record. The line of a failed record stays open. The
// line of a refused one is bad: the sender takes it with takeRefused.
func (l *ledger) acknowledged(f *flight, m *producerMetrics, err error) {
	if kafka.IsRefusal(err) {
		m.countRejected(f.typ)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.inFlight--
		l.rejected++
		l.refused = append(l.refused, refusal{f, l.open[f.number-l.first].at, err})
		return
	}
	if err != nil {
		m.countFailed(f.typ)
		if l.lose(f, err) {
			l.failed()
		}
		return
	}
	m.countSent(f.typ)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inFlight--
	l.total++
	if l.sent == nil {
		l.sent = map[*event.Type]int{}
	}
	l.sent[f.typ]++
	l.strike(f.number)
	l.free = append(l.free, f)
}

// takeRefused returns the refused records; their lines are then done.
func (l *ledger) takeRefused() []refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := l.refused
	l.refused = nil
	for _, r := range taken {
		l.strike(r.flight.number)
	}
	return taken
}

// lose counts a failed record, and reports whether it is the first one.
func (l *ledger) lose(f *flight, err error) (first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inFlight--
	l.lost++
	if l.err != nil {
		return false
	}
	l.err = fmt.Errorf("%s: Kafka did not accept the event: %w", l.open[f.number-l.first].at, err)
	return true
}

// strike marks a line as done and moves head to the first line that is not. mu is
// held.
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

// skip adds a line without a record.
func (l *ledger) skip(at position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.head == len(l.open) {
		l.through = at
		return
	}
	l.open = append(l.open, entry{at, true})
}

// reject adds a bad line, whose flight is free again.
func (l *ledger) reject(f *flight, at position) {
	l.rejectLong(at)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = append(l.free, f)
}

// rejectLong adds a line that is too long to be encoded.
func (l *ledger) rejectLong(at position) {
	l.skip(at)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rejected++
}

// progress returns the numbers of records sent, lines rejected and records in flight.
func (l *ledger) progress() (sent, rejected, inFlight int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total, l.rejected, l.inFlight
}

// sendOutcome is the result of a run.
type sendOutcome struct {
	sent        map[string]int // acknowledged records by type
	total       int            // acknowledged records
	rejected    int            // bad lines
	failed      int            // records that Kafka did not accept
	unknown     int            // records without a result
	through     position       // every valid line up to this one is acknowledged
	rejects     []string       // files
	took        time.Duration
	interrupted bool
	err         error
}

// outcome returns the result so far.
func (l *ledger) outcome() *sendOutcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &sendOutcome{sent: map[string]int{}, total: l.total, rejected: l.rejected, failed: l.lost, unknown: l.inFlight, through: l.through, err: l.err}
	for t, n := range l.sent {
		out.sent[t.Name] += n
	}
	return out
}
