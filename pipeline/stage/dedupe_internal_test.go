package stage

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

func digestOfNumber(n int) digest {
	var id [8]byte
	binary.BigEndian.PutUint64(id[:], uint64(n))
	return digestOf(id[:])
}

// BenchmarkDedupeMemory measures the memory of 10 million ids that are spread evenly
// over the duration within.
func BenchmarkDedupeMemory(b *testing.B) {
	const n, within = 10_000_000, int64(10 * time.Minute / time.Millisecond)
	for b.Loop() {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m := &memory{within: within}
		m.begin()
		for i := range n {
			m.put(digestOfNumber(i), int64(i)*within/n, int64(i))
		}
		runtime.ReadMemStats(&after)
		bytes := 0
		for _, s := range m.spans {
			bytes += s.bytes()
		}
		b.ReportMetric(float64(bytes)/n, "B/id")
		b.ReportMetric(float64(after.HeapSys)/(1<<20), "MiB-heap")
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/id")
		runtime.KeepAlive(m)
	}
}

// BenchmarkDedupe measures one lookup of a known id.
func BenchmarkDedupe(b *testing.B) {
	const within = int64(time.Hour / time.Millisecond)
	for _, n := range []int{1_000, 1_000_000} {
		b.Run(fmt.Sprintf("ids=%d", n), func(b *testing.B) {
			m := &memory{within: within}
			m.begin()
			r := rand.New(rand.NewPCG(1, 2))
			for i := range n {
				m.put(digestOfNumber(i), int64(i)*within/int64(n), int64(i))
			}
			b.ReportAllocs()
			var id [16]byte
			for b.Loop() {
				i := r.IntN(n)
				binary.BigEndian.PutUint64(id[:], uint64(i))
				if !m.has(digestOf(id[:8]), within/2) {
					b.Fatal("an id is missing")
				}
			}
		})
	}
}

// FuzzReadChange checks that readChange never panics, and that a change that was read
// can be written and read again with the same result.
func FuzzReadChange(f *testing.F) {
	good, _ := appendChange(nil, true, []addition{
		{digest: digestOfNumber(1), time: 5, offset: 3}, {digest: digestOfNumber(2), time: -7, offset: 3}, {digest: digestOfNumber(3), time: 1 << 40, offset: 1 << 50}})
	f.Add(good, int64(1<<60))
	f.Add(good[:20], int64(4))
	f.Add([]byte{changeMore}, int64(0))
	f.Fuzz(func(t *testing.T, change []byte, next int64) {
		added, err := readChange(nil, change, next)
		if err != nil {
			return
		}
		for i, a := range added {
			if a.offset >= next || i > 0 && a.offset < added[i-1].offset {
				t.Fatalf("offset %d is out of order, or not before %d", a.offset, next)
			}
		}
		again, rest := appendChange(nil, true, added)
		if len(rest) > 0 {
			return // too large for one change
		}
		got, err := readChange(nil, again, next)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(added) {
			t.Fatalf("read %v, %v; want %v", got, err, added)
		}
	})
}

// A large batch becomes several changes of at most MaxChange bytes.
func TestChangesAreSplitToMaxChange(t *testing.T) {
	var added []addition
	for i := range 60_000 {
		added = append(added, addition{digest: digestOfNumber(i), time: int64(i), offset: int64(i/7) << 20})
	}
	var got []addition
	pieces := 0
	for rest := added; len(rest) > 0; pieces++ {
		var change []byte
		change, rest = appendChange(nil, pieces == 0, rest)
		if len(change) > MaxChange {
			t.Fatalf("a change of %d bytes, want at most %d", len(change), MaxChange)
		}
		var err error
		if got, err = readChange(got, change, 1<<62); err != nil {
			t.Fatal(err)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(added) || pieces < 2 {
		t.Errorf("%d additions in %d pieces, want %d in at least 2", len(got), pieces, len(added))
	}
}
