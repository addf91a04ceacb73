package rows

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// A Map behaves like Go's map under random operations, and returned rows never change.
func TestMapAgreesWithGoMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New()
		want := map[string]string{}
		type held struct {
			row  []byte
			want string
		}
		var holds []held
		key := rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprintf("%.*d", rapid.IntRange(0, 40).Draw(t, "width"), rapid.IntRange(0, 300).Draw(t, "number"))
		})
		row := rapid.Custom(func(t *rapid.T) string {
			size := rapid.SampledFrom([]int{0, 1, 3, 20, 100, 5000, slabSize - 20, slabSize + 1}).Draw(t, "size")
			return string(bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, size))
		})
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				k, r := key.Draw(t, "key"), row.Draw(t, "row")
				m.Set([]byte(k), []byte(r))
				want[k] = r
			},
			"set many": func(t *rapid.T) {
				from, size := rapid.IntRange(0, 1000).Draw(t, "from"), rapid.IntRange(0, 60).Draw(t, "size")
				for i := from; i < from+500; i++ {
					k, r := fmt.Sprint(i), fmt.Sprintf("%0*d", size, i)
					m.Set([]byte(k), []byte(r))
					want[k] = r
				}
			},
			"delete many": func(t *rapid.T) {
				from := rapid.IntRange(0, 1000).Draw(t, "from")
				for i := from; i < from+400; i++ {
					k := fmt.Sprint(i)
					_, had := want[k]
					if got := m.Delete([]byte(k)); got != had {
						t.Fatalf("Delete(%q) is %v", k, got)
					}
					delete(want, k)
				}
			},
			"delete": func(t *rapid.T) {
				k := key.Draw(t, "key")
				m.Delete([]byte(k))
				delete(want, k)
			},
			"hold": func(t *rapid.T) {
				if r, ok := m.Get([]byte(key.Draw(t, "key"))); ok {
					holds = append(holds, held{r, string(r)})
				}
			},
			"": func(t *rapid.T) {
				if m.Len() != len(want) {
					t.Fatalf("%d rows, want %d", m.Len(), len(want))
				}
				for k, r := range want {
					if got, ok := m.Get([]byte(k)); !ok || string(got) != r {
						t.Fatalf("Get(%q) is %.20q, %v; want %.20q", k, got, ok, r)
					}
				}
				if _, ok := m.Get([]byte("a key that is never set")); ok {
					t.Fatal("Get returned a row for a key that was never set")
				}
				for _, h := range holds {
					if string(h.row) != h.want {
						t.Fatalf("a returned row changed from %.20q to %.20q", h.want, h.row)
					}
				}
				m.check(t)
			},
		})
	})
}

// check verifies the byte counts of a Map.
func (m *Map) check(t *rapid.T) {
	for i := range m.shards {
		s := &m.shards[i]
		used, dead := 0, 0
		for j := range s.slabs {
			used += len(s.slabs[j].bytes)
			dead += s.slabs[j].dead
		}
		live := 0
		for _, v := range s.index.slots {
			if place(v) != noPlace {
				_, _, size := s.entry(place(v))
				live += size
			}
		}
		if used != s.used || dead != s.dead || live != used-dead {
			t.Fatalf("shard %d: %d bytes used (counted %d), %d dead (counted %d), %d live", i, used, s.used, dead, s.dead, live)
		}
		if s.dead > firstSlab && 4*s.dead > s.used {
			t.Fatalf("shard %d: %d of %d bytes are dead", i, s.dead, s.used)
		}
	}
}

// Rows that change often do not fill the memory.
func TestReplacedAndDeletedRowsReleaseTheirMemory(t *testing.T) {
	m := New()
	fill := func(round int) {
		for i := range 20_000 {
			m.Set(fmt.Appendf(nil, "user-%d", i), fmt.Appendf(nil, "%040d", round*i))
		}
	}
	fill(1)
	once := m.Bytes()
	for round := range 50 {
		fill(round + 2)
	}
	if now := m.Bytes(); now > 2*once {
		t.Errorf("%d bytes after the first round, %d after fifty more", once, now)
	}
	for i := range 20_000 {
		m.Delete(fmt.Appendf(nil, "user-%d", i))
	}
	if m.Len() != 0 {
		t.Errorf("%d rows remain", m.Len())
	}
	if now := m.Bytes(); now > once {
		t.Errorf("%d bytes in an empty Map", now)
	}
}

func TestGetAllocatesNothing(t *testing.T) {
	m := New()
	key := []byte("user-1")
	m.Set(key, []byte("a row"))
	if n := testing.AllocsPerRun(100, func() { m.Get(key); m.Get(key[:3]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Readers hold rows while a writer replaces them. The race detector makes this test
// stricter.
func TestConcurrentReadersAndWriter(t *testing.T) {
	m := New()
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				row, ok := m.Get(fmt.Appendf(nil, "%d", i%500))
				for j := range row {
					if row[j] != row[0] {
						t.Error("a row with bytes of two versions")
						return
					}
				}
				if ok && len(row) != 64 {
					t.Errorf("a row of %d bytes", len(row))
					return
				}
			}
		})
	}
	for i := range 100_000 {
		key := fmt.Appendf(nil, "%d", rand.IntN(500))
		if i%7 == 0 {
			m.Delete(key)
		} else {
			m.Set(key, bytes.Repeat([]byte{byte(i)}, 64))
		}
	}
	close(done)
	readers.Wait()
}

// benchKey returns a key of 12 bytes, the length of a short id.
func benchKey(dst []byte, i int) []byte {
	dst = append(dst[:0], "user"...)
	return binary.BigEndian.AppendUint64(dst, uint64(i)*0x9e3779b97f4a7c15)
}

func filled(n int) *Map {
	m := New()
	var key []byte
	row := make([]byte, 60)
	for i := range n {
		key = benchKey(key, i)
		binary.BigEndian.PutUint64(row, uint64(i))
		m.Set(key, row)
	}
	return m
}

func BenchmarkGet(b *testing.B) {
	for _, n := range []int{1_000, 100_000, 1_000_000, 10_000_000} {
		b.Run(fmt.Sprintf("rows=%d", n), func(b *testing.B) {
			m := filled(n)
			key := make([]byte, 0, 12)
			r := rand.New(rand.NewPCG(1, 2))
			b.ReportAllocs()
			for b.Loop() {
				key = benchKey(key, r.IntN(n))
				if _, ok := m.Get(key); !ok {
					b.Fatal("a row is missing")
				}
			}
		})
	}
}

// BenchmarkGoMap measures a lookup in Go's map, for comparison.
func BenchmarkGoMap(b *testing.B) {
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("rows=%d", n), func(b *testing.B) {
			m := make(map[string][]byte, n)
			var mu sync.RWMutex
			key := make([]byte, 0, 12)
			for i := range n {
				key = benchKey(key, i)
				m[string(key)] = make([]byte, 60)
			}
			r := rand.New(rand.NewPCG(1, 2))
			for b.Loop() {
				key = benchKey(key, r.IntN(n))
				mu.RLock()
				row, ok := m[string(key)]
				mu.RUnlock()
				if !ok || len(row) != 60 {
					b.Fatal("a row is missing")
				}
			}
		})
	}
}

func BenchmarkSet(b *testing.B) {
	m := filled(100_000)
	key := make([]byte, 0, 12)
	row := make([]byte, 60)
	r := rand.New(rand.NewPCG(1, 2))
	b.ReportAllocs()
	for b.Loop() {
		key = benchKey(key, r.IntN(100_000))
		binary.BigEndian.PutUint64(row, r.Uint64())
		m.Set(key, row)
	}
}

// BenchmarkMemory reports the memory of 10 million rows of 60 bytes with keys of 12 bytes.
func BenchmarkMemory(b *testing.B) {
	const n = 10_000_000
	for b.Loop() {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m := filled(n)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(m.Bytes())/n, "B/row")
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB-live")
		b.ReportMetric(float64(after.HeapSys)/(1<<20), "MiB-heap")
		b.ReportMetric(float64(after.PauseTotalNs-before.PauseTotalNs)/1e6, "ms-GC-pauses")
		runtime.KeepAlive(m)
	}
}
