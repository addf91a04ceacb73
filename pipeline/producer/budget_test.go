package producer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// readBody reads a body of an unknown length, which nothing stops.
func readBody(b *budget, from io.Reader) ([]byte, func(), error) {
	return b.body(context.Background(), from, -1, func() {})
}

// free returns the memory that is left.
func (b *budget) free() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.left
}

// Bodies of any size are read unchanged, and afterwards all of the memory is free again.
func TestABudgetReadsBodiesAndGetsTheirMemoryBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const all = 1 << 20
		b := newBudget(all)
		body := bytes.Repeat([]byte("x"), rapid.IntRange(0, 300<<10).Draw(t, "bytes"))
		var from io.Reader = bytes.NewReader(body)
		if rapid.Bool().Draw(t, "in small pieces") {
			from = iotest.DataErrReader(iotest.HalfReader(from))
		}
		length := int64(len(body))
		if rapid.Bool().Draw(t, "of unknown length") {
			length = -1
		}
		got, done, err := b.body(context.Background(), from, length, func() {})
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("read %d of %d bytes: %v", len(got), len(body), err)
		}
		if length > 0 && b.free() != all-length {
			t.Fatalf("a body of %d bytes takes %d", length, all-b.free())
		}
		done()
		if b.free() != all {
			t.Fatal("some memory is not free again")
		}
	})
}

func TestABodyThatDoesNotFitIsRefusedWithoutHoldingMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const all = 64 << 10
		b := newBudget(all)
		first, done, err := readBody(b, strings.NewReader(strings.Repeat("x", 16<<10-1)))
		if err != nil {
			t.Fatal(err)
		}
		if _, release, err := readBody(b, strings.NewReader(strings.Repeat("x", 60<<10))); !errors.Is(err, errBudget) {
			t.Errorf("the error of a body that does not fit is %v", err)
		} else {
			release()
		}
		fault := errors.New("the client is gone")
		_, release, err := readBody(b, io.MultiReader(strings.NewReader("x"), iotest.ErrReader(fault)))
		if !errors.Is(err, fault) {
			t.Errorf("the error of the reader is %v, want %v", err, fault)
		}
		release()
		if len(first) != 16<<10-1 {
			t.Errorf("the first body has %d bytes now", len(first))
		}
		done()
		if b.free() != all {
			t.Error("some memory is not free again")
		}
	})
}

// slowBody is a body that arrives at a rate, in bytes per second, until it is stopped.
type slowBody struct {
	left, rate int
	ended      chan struct{}
	once       sync.Once
}

func newSlowBody(bytes, rate int) *slowBody {
	return &slowBody{left: bytes, rate: rate, ended: make(chan struct{})}
}

func (s *slowBody) stop() { s.once.Do(func() { close(s.ended) }) }

func (s *slowBody) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), s.left, max(1, s.rate/20))
	t := time.NewTimer(time.Duration(n) * time.Second / time.Duration(s.rate))
	defer t.Stop()
	select {
	case <-t.C:
		s.left -= n
		return n, nil
	case <-s.ended:
		return 0, context.DeadlineExceeded
	}
}

// Bodies that arrive slowly make room for one that arrives quickly: the slowest first, and
// only as many as it needs.
func TestSlowBodiesMakeRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const all = 64 << 10
		b := newBudget(all)
		slow := make([]*slowBody, 16) // the first are the slowest
		ends := make([]error, len(slow))
		var reading sync.WaitGroup
		for i := range slow {
			slow[i] = newSlowBody(1<<20, 100*(i+1))
			reading.Go(func() {
				_, done, err := b.body(t.Context(), slow[i], 1<<20, slow[i].stop)
				ends[i] = err
				done()
			})
		}
		<-time.After(2*slowAfter + time.Millisecond) // between two reads
		if b.free() != 0 {
			t.Fatalf("%d bytes are left", b.free())
		}
		const size = 10 << 10 // and 4 KiB while it grows, so four slow bodies of 4 KiB make room
		body, done, err := b.body(t.Context(), strings.NewReader(strings.Repeat("x", size)), size, func() {})
		if err != nil || len(body) != size {
			t.Fatalf("a quick body: %d bytes, %v", len(body), err)
		}
		synctest.Wait()
		for i, err := range ends {
			if stopped := errors.Is(err, errSlow); stopped != (i < 4) {
				t.Errorf("slow body %d ends with %v", i, err)
			}
		}
		done()
		for _, s := range slow[4:] {
			s.stop()
		}
		reading.Wait()
		if b.free() != all {
			t.Errorf("%d of %d bytes are free again", b.free(), all)
		}
	})
}

// Quick bodies that need more memory than there is do not stop each other, and do not wait
// for each other forever: some are read, the others are refused.
func TestQuickBodiesBeyondTheMemoryDoNotBlockEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const all = 64 << 10
		b := newBudget(all)
		results := make(chan error)
		for range 6 {
			quick := newSlowBody(32<<10, 10*slowRate)
			go func() {
				_, done, err := b.body(t.Context(), quick, 32<<10, quick.stop)
				done()
				results <- err
			}()
		}
		read := 0
		for range 6 {
			switch err := <-results; {
			case err == nil:
				read++
			case !errors.Is(err, errBudget):
				t.Errorf("a quick body ends with %v", err)
			}
		}
		if read == 0 {
			t.Error("no body was read")
		}
		if b.free() != all {
			t.Errorf("%d of %d bytes are free again", b.free(), all)
		}
	})
}
