package producer

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"
)

// budget limits the memory for the bodies of all requests together. If a body needs more
// than is left, a slow one makes room: clients that send slowly cannot keep others out.
// Several goroutines can use it.
type budget struct {
	mu      sync.Mutex
	left    int64         // bytes
	reading []*bodyMemory // bodies that are being read
	read    int           // bodies that were read and still have their memory
	freed   chan struct{} // closed when memory was released; nil if no goroutine waits
}

// bodyMemory is the memory of one body. budget.mu guards it, except for the constants.
type bodyMemory struct {
	stop    func()    // makes the body's Read return an error; constant
	began   time.Time // of reading, without the time that it waited for memory
	taken   int64     // bytes of the budget
	arrived int64     // bytes of the body
	whole   bool      // it was read to its end
	stopped bool      // it made room for others
	waits   bool      // for memory
}

const (
	// firstRead is the memory that a body gets at first, in bytes. It doubles as the body
	// grows, so a client that announces a large body and sends nothing takes little.
	firstRead = 4 << 10
	// announced is the share of a body, 1/announced, after which it gets memory for all of
	// its announced length.
	announced = 8

	// A body makes room if it arrives at less than slowRate bytes per second, over at least
	// slowAfter.
	slowRate  = 256 << 10
	slowAfter = 100 * time.Millisecond

	// maxWait is how long a body waits for memory: slow ones have made room by then.
	maxWait = time.Second
)

var (
	// errBudget means that the bodies of other requests take all memory.
	errBudget = errors.New("the bodies of other requests take all memory")
	// errSlow means that a body made room for others.
	errSlow = errors.New("the body arrived slowly, and other requests needed its memory")
)

func newBudget(bytes int64) *budget { return &budget{left: bytes} }

// body reads a body, whose announced length is length, -1 if it is unknown. stop makes
// from return an error; another goroutine may call it. The caller must call done when it no
// longer needs the body; also after an error, which is that of the reader, errBudget or
// errSlow.
func (b *budget) body(ctx context.Context, from io.Reader, length int64, stop func()) (body []byte, done func(), err error) {
	m := &bodyMemory{began: time.Now(), stop: stop}
	b.mu.Lock()
	b.reading = append(b.reading, m)
	b.mu.Unlock()
	done = func() { b.release(m) }
	for size := int64(firstRead); ; size *= 2 {
		if length >= 0 && (size > length || int64(len(body)) >= length/announced) {
			size = length
		}
		// While the body moves to the larger memory, both exist.
		if err := b.take(ctx, m, size); err != nil {
			return nil, done, err
		}
		larger := make([]byte, len(body), size)
		copy(larger, body)
		b.give(m, int64(cap(body)))
		body = larger
		for len(body) < cap(body) || int64(len(body)) == length {
			n, err := readMore(from, &body)
			switch whole := errors.Is(err, io.EOF); {
			case b.progress(m, n, whole):
				return nil, done, errSlow
			case whole:
				return body, done, nil
			case err != nil:
				return nil, done, err
			}
		}
	}
}

var errLonger = errors.New("the body is longer than announced")

// readMore appends to a body what is there. At the end of its memory, the reader must end.
func readMore(from io.Reader, body *[]byte) (n int, err error) {
	if len(*body) < cap(*body) {
		n, err = from.Read((*body)[len(*body):cap(*body)])
		*body = (*body)[:len(*body)+n]
		return n, err
	}
	var more [1]byte
	if n, err = from.Read(more[:]); n > 0 {
		err = errLonger
	}
	return 0, err
}

// take takes memory for a body, and waits for it if slow bodies have to make room.
func (b *budget) take(ctx context.Context, m *bodyMemory, bytes int64) error {
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	since := time.Now()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		m.waits, m.began = false, m.began.Add(time.Since(since))
	}()
	for {
		freed, err := b.tryTake(m, bytes)
		if freed == nil {
			return err
		}
		again := time.NewTimer(slowAfter) // a body may be slow by then
		select {
		case <-freed:
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return errBudget
		}
		again.Stop()
	}
}

// tryTake takes memory for a body. If there is not enough, it stops a slow body, and
// returns a channel that is closed when memory was released. If all bodies with memory wait
// for more, none would be released, so the body gets errBudget.
func (b *budget) tryTake(m *bodyMemory, bytes int64) (freed <-chan struct{}, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.stopped {
		return nil, errSlow
	}
	if bytes <= b.left {
		b.left -= bytes
		m.taken += bytes
		return nil, nil
	}
	m.waits = true
	if slow := b.slow(time.Now()); slow != nil {
		slow.stopped = true
		slow.stop()
	}
	if !b.mayFree() {
		return nil, errBudget
	}
	if b.freed == nil {
		b.freed = make(chan struct{})
	}
	return b.freed, nil
}

// slow returns the body that makes room: of the slow ones with the most memory, the slowest;
// nil if none is slow. The caller has the lock.
func (b *budget) slow(now time.Time) (found *bodyMemory) {
	var least float64
	for _, m := range b.reading {
		took := now.Sub(m.began)
		if m.stopped || m.waits || took < slowAfter {
			continue
		}
		rate := float64(m.arrived) / took.Seconds()
		if rate < slowRate && (found == nil || m.taken > found.taken || m.taken == found.taken && rate < least) {
			found, least = m, rate
		}
	}
	return found
}

// mayFree reports whether memory may be released although all bodies that wait
// continue to wait. The caller has the lock.
func (b *budget) mayFree() bool {
	return b.read > 0 || slices.ContainsFunc(b.reading, func(m *bodyMemory) bool { return !m.waits })
}

// progress notes that a part of a body arrived, and whether it is the last one. It reports
// whether the body was stopped.
func (b *budget) progress(m *bodyMemory, bytes int, last bool) (stopped bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m.arrived += int64(bytes)
	if last && !m.stopped {
		m.whole = true
		b.read++
		b.forget(m)
	}
	return m.stopped
}

// forget removes a body from those that are being read. The caller has the lock.
func (b *budget) forget(m *bodyMemory) {
	b.reading = slices.DeleteFunc(b.reading, func(other *bodyMemory) bool { return other == m })
}

// give returns some memory of a body.
func (b *budget) give(m *bodyMemory, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveLocked(m, bytes)
}

func (b *budget) giveLocked(m *bodyMemory, bytes int64) {
	if bytes == 0 {
		return
	}
	m.taken -= bytes
	b.left += bytes
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

// release returns all memory of a body.
func (b *budget) release(m *bodyMemory) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.whole {
		b.read--
	} else {
		b.forget(m)
	}
	b.giveLocked(m, m.taken)
}
