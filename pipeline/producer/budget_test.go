package producer

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// Bodies of any size are read unchanged, and afterwards all of the memory is free again.
func TestABudgetReadsBodiesAndGetsTheirMemoryBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const all = 1 << 20
		b := newBudget(all)
		body := bytes.Repeat([]byte("x"), rapid.IntRange(0, 300<<10).Draw(t, "bytes"))
		var from io.Reader = bytes.NewReader(body)
		if rapid.Bool().Draw(t, "in small pieces") {
			from = iotest.DataErrReader(iotest.HalfReader(from))
		}
		got, done, err := b.read(from)
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("read %d of %d bytes: %v", len(got), len(body), err)
		}
		done()
		if !b.bytes.TryAcquire(all) {
			t.Fatal("some memory is not free again")
		}
	})
}

func TestABodyThatDoesNotFitIsRefusedWithoutHoldingMemory(t *testing.T) {
	const all = 64 << 10
	b := newBudget(all)
	first, done, err := b.read(strings.NewReader(strings.Repeat("x", 16<<10-1)))
	if err != nil {
		t.Fatal(err)
	}
	if _, release, err := b.read(strings.NewReader(strings.Repeat("x", 60<<10))); !errors.Is(err, errBudget) {
		t.Errorf("the error of a body that does not fit is %v", err)
	} else {
		release()
	}
	fault := errors.New("the client is gone")
	_, release, err := b.read(io.MultiReader(strings.NewReader("x"), iotest.ErrReader(fault)))
	if !errors.Is(err, fault) {
		t.Errorf("the error of the reader is %v, want %v", err, fault)
	}
	release()
	if len(first) != 16<<10-1 {
		t.Errorf("the first body has %d bytes now", len(first))
	}
	done()
	if !b.bytes.TryAcquire(all) {
		t.Error("some memory is not free again")
	}
}
