package producer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/event"
	"millrace/pipeline/keyring"
)

// sender sends the events of a source and accounts for every line. One goroutine
// reads, encodes and writes. The writer calls back when Kafka has acknowledged a
// record; only then it counts as sent. The ledger holds the lines in between.
type sender struct {
	encoder *event.Encoder
	writer  keyring.RecordWriter
	rejects *rejects
	console *console
	metrics *producerMetrics
	now     func() time.Time
	tick    <-chan time.Time // when to check the progress

	// patience is the longest time without an acknowledgement while records are in
	// flight. After it the sender gives up.
	patience time.Duration

	ledger ledger
	chunk  []sentLine // the current lines
}

// sentLine is a line between its encoding and its writing.
type sentLine struct {
	line    []byte
	at      position
	flight  *flight // nil if the line is empty
	subject string  // data subject whose key the event needs; "" if none
	err     error   // fault of the line
}

// maxFaultsShown bounds the bad lines that are reported one by one.
const maxFaultsShown = 20

// errNoProgress is the reason for giving up.
var errNoProgress = errors.New("no acknowledgement from Kafka")

// run sends all events of the source. The end of the context stops the reading; the
// lines that were read before are still sent. The outcome is always complete.
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
	err = errors.Join(err, s.rejectRefused())
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
		out.err = context.Cause(writing) // failed records failed because of it
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
		out.err = fmt.Errorf("%d records were written, but their result is unknown", out.unknown)
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
		// Missing keys are created for many lines together: each creation takes a
		// round trip to Kafka.
		many := 1
		if s.encoder.Keys() != nil {
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
			one.flight, one.subject = f, s.encoder.Subject()
			if one.err == nil && one.subject != "" {
				subjects = append(subjects, one.subject)
			}
		}
		s.chunk = append(s.chunk, one)
	}
	if keys := s.encoder.Keys(); keys != nil && len(subjects) > 0 {
		ensuring, cancel := context.WithTimeoutCause(ctx, s.patience, errNoProgress)
		err := keys.Ensure(ensuring, subjects)
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
	return s.rejectRefused()
}

// rejectRefused rejects the lines whose records Kafka refused since the last call.
func (s *sender) rejectRefused() error {
	for _, r := range s.ledger.takeRefused() {
		if err := s.reject(r.flight.line, r.at, fmt.Errorf("Kafka refused the event: %w", r.why)); err != nil {
			return err
		}
	}
	return nil
}

// line writes an encoded line, or rejects it.
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
			return one.err // a fault of the keys, not of the line
		}
	}
	if one.err != nil {
		s.metrics.countRejected(f.typ)
		s.ledger.reject(f, one.at)
		return s.reject(one.line, one.at, one.err)
	}
	f.line = append(f.line[:0], one.line...)
	s.ledger.written(f, one.at, s.metrics)
	s.writer.Write(ctx, &f.record, f.done)
	return nil
}

// reject reports a bad line and keeps it.
func (s *sender) reject(line []byte, at position, why error) error {
	if s.rejects.count < maxFaultsShown {
		s.console.printf("%s: %v", at, why)
	}
	return s.rejects.add(at.input, line, true)
}

// rejectLong rejects a piece of a line that is too long.
func (s *sender) rejectLong(b *lineBatch) error {
	at := position{b.input, b.first}
	if b.long == longMore {
		return s.rejects.add(b.input, b.data, false)
	}
	s.metrics.countRejected(nil)
	s.ledger.rejectLong(at)
	return s.reject(b.data, at, fmt.Errorf("a line of more than %d MiB", maxLine>>20))
}

// watch shows the progress, and gives up if there is none for too long.
func (s *sender) watch(ended <-chan struct{}, giveUp func(error)) {
	began := s.now()
	last, since := 0, began
	for {
		select {
		case <-ended:
			return
		case <-s.tick:
		}
		sent, rejected, inFlight := s.ledger.progress()
		now := s.now()
		if sent != last || inFlight == 0 {
			last, since = sent, now
		}
		if wait := now.Sub(since); wait >= s.patience {
			giveUp(fmt.Errorf("%w in %v, with %d records in flight", errNoProgress, wait.Round(time.Second), inFlight))
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
