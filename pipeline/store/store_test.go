package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/prometheus/client_golang/prometheus"
)

// ingestBytes is less than the default, so the tests need less memory.
const ingestBytes = 1 << 20

func open(t testing.TB, fs vfs.FS) *Store {
	t.Helper()
	s, err := Open("data", Options{FS: fs, IngestBytes: ingestBytes})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func part(t testing.TB, s *Store, name string, partition int32) *Part {
	t.Helper()
	p, err := s.Part(name, partition, "test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func commit(t testing.TB, b *Batch) {
	t.Helper()
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

// dump returns the position and all entries of a part, in order.
func dump(t testing.TB, p *Part) string {
	t.Helper()
	v := p.View()
	defer v.Close()
	var out strings.Builder
	next, ok, err := v.Position()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "at %d %v", next, ok)
	for f := range 256 {
		if f == 0 {
			continue // family 0 is the position
		}
		if err := v.Scan(Family(f), nil, nil, false, func(key, value []byte) bool {
			fmt.Fprintf(&out, " %d:%s=%s", f, key, value)
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

func TestAStoreKeepsOnlyCommittedChanges(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs)
	users, orders := part(t, s, "user", 0), part(t, s, "order", 0)
	b := s.NewBatch()
	b.Put(users, 1, []byte("b"), []byte("2"))
	b.Put(users, 1, []byte("a"), []byte("1"))
	b.Put(users, 2, []byte("a"), []byte("other"))
	b.Put(users, 1, []byte("b"), []byte("3")) // the last change wins
	b.Put(users, 1, []byte("gone"), nil)
	b.Delete(users, 1, []byte("gone"))
	b.Put(users, 255, []byte{0xff, 0xff}, []byte("last"))
	b.SetPosition(users, 7)
	b.SetPosition(orders, 1<<40)
	commit(t, b)
	if b.Len() != 0 || b.Bytes() != 0 {
		t.Errorf("after Commit the batch has %d changes of %d bytes, want none", b.Len(), b.Bytes())
	}
	b.Put(users, 1, []byte("never"), nil)
	want := "at 7 true 1:a=1 1:b=3 2:a=other 255:\xff\xff=last"
	for range 2 {
		if got := dump(t, users); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if got, want := dump(t, orders), "at 1099511627776 true"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if got, want := dump(t, part(t, s, "user", 1)), "at 0 false"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		closeStore(t, s)
		s = open(t, fs)
		users, orders = part(t, s, "user", 0), part(t, s, "order", 0)
	}
	closeStore(t, s)
}

func TestScanSupportsRangesReverseOrderAndEarlyStop(t *testing.T) {
	s := open(t, vfs.NewMem())
	defer closeStore(t, s)
	p := part(t, s, "p", 0)
	b := s.NewBatch()
	for _, k := range []string{"a", "b", "c", "d"} {
		b.Put(p, 3, []byte(k), nil)
		b.Put(p, 2, []byte(k), nil)
		b.Put(p, 4, []byte(k), nil)
	}
	commit(t, b)
	v := p.View()
	defer closeView(t, v)
	for _, c := range []struct {
		from, to string
		reverse  bool
		most     int
		want     string
	}{
		{"", "", false, 9, "abcd"},
		{"", "", true, 9, "dcba"},
		{"b", "d", false, 9, "bc"},
		{"b", "d", true, 1, "c"},
		{"bb", "", false, 1, "c"},
		{"e", "", false, 9, ""},
	} {
		var got string
		var to []byte
		if c.to != "" {
			to = []byte(c.to)
		}
		if err := v.Scan(3, []byte(c.from), to, c.reverse, func(key, _ []byte) bool {
			got += string(key)
			return len(got) < c.most
		}); err != nil {
			t.Fatal(err)
		}
		if got != c.want {
			t.Errorf("from %q to %q, reverse %v, at most %d: got %q, want %q", c.from, c.to, c.reverse, c.most, got, c.want)
		}
	}
}

func closeView(t testing.TB, v *View) {
	t.Helper()
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}

func TestAViewDoesNotSeeLaterCommits(t *testing.T) {
	s := open(t, vfs.NewMem())
	defer closeStore(t, s)
	p := part(t, s, "p", 0)
	fill := func(n int64) {
		b := s.NewBatch()
		b.Put(p, 1, []byte("k"), []byte(strconv.FormatInt(n, 10)))
		b.SetPosition(p, n)
		commit(t, b)
	}
	fill(1)
	v := p.View()
	defer closeView(t, v)
	fill(2)
	next, _, err := v.Position()
	value, _, err2 := v.Get(nil, 1, []byte("k"))
	if err != nil || err2 != nil || next != 1 || string(value) != "1" {
		t.Errorf("the view has position %d and value %q (%v, %v), want 1 and 1", next, value, err, err2)
	}
}

// A large batch is ingested, a small one is written through the log. The result is the same.
func TestLargeAndSmallBatchesHaveTheSameEffect(t *testing.T) {
	s := open(t, vfs.NewMem())
	defer closeStore(t, s)
	large, small := part(t, s, "large", 0), part(t, s, "small", 0)
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 3 {
		big, one := s.NewBatch(), s.NewBatch()
		for i := range 6000 {
			f := Family(1 + rng.IntN(3))
			key := []byte(strconv.Itoa(rng.IntN(4000)))
			if rng.IntN(10) == 0 {
				big.Delete(large, f, key)
				one.Delete(small, f, key)
				continue
			}
			value := []byte(strings.Repeat(strconv.Itoa(i+round), 100))
			big.Put(large, f, key, value)
			one.Put(small, f, key, value)
			if one.Len() == 100 {
				commit(t, one)
			}
		}
		big.SetPosition(large, int64(round))
		one.SetPosition(small, int64(round))
		if big.Bytes() < ingestBytes {
			t.Fatalf("the batch has only %d bytes, so it is not ingested", big.Bytes())
		}
		commit(t, big)
		commit(t, one)
		if dump(t, large) != dump(t, small) {
			t.Fatalf("round %d: the parts differ", round)
		}
	}
	if n := s.db.Metrics().Ingest.Count; n == 0 {
		t.Error("nothing was ingested")
	}
}

func TestAPartWithAnotherIdentityIsEmptied(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs)
	fill := func(p *Part) {
		b := s.NewBatch()
		b.Put(p, 1, []byte("k"), []byte("v"))
		b.SetPosition(p, 7)
		commit(t, b)
	}
	first := part(t, s, "p", 0)
	fill(first)
	neighbor := part(t, s, "p", 1)
	fill(neighbor)
	if again := part(t, s, "p", 0); again != first {
		t.Error("a part with the expected identity was replaced")
	}
	other, err := s.Part("p", 0, "another identity")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Part{first, other} {
		if got := dump(t, p); got != "at 0 false" {
			t.Errorf("the part is not empty: %s", got)
		}
	}
	fill(other)
	if got := dump(t, first); got != "at 0 false" {
		t.Errorf("the replaced part sees the entries of the new one: %s", got)
	}
	fresh, err := s.Reset(other)
	if err != nil {
		t.Fatal(err)
	}
	if got := dump(t, fresh); got != "at 0 false" {
		t.Errorf("after Reset the part is not empty: %s", got)
	}
	closeStore(t, s)
	s = open(t, fs)
	defer closeStore(t, s)
	if p, err := s.Part("p", 0, "another identity"); err != nil || dump(t, p) != "at 0 false" || p.id != fresh.id {
		t.Errorf("after another Open: %+v, %v", p, err)
	}
	if got := dump(t, part(t, s, "p", 1)); got != "at 7 true 1:k=v" {
		t.Errorf("the neighbor has %s", got)
	}
}

func TestASecondOpenOfADirectoryFails(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{IngestBytes: ingestBytes})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(dir, Options{IngestBytes: ingestBytes})
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) || !strings.Contains(err.Error(), dir) {
		t.Errorf("the second Open returns %v", err)
	}
	closeStore(t, s)
	if s, err = Open(dir, Options{IngestBytes: ingestBytes}); err != nil {
		t.Fatalf("after Close: %v", err)
	}
	closeStore(t, s)
}

func TestOpenRefusesADirectoryWithOtherFiles(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "thesis.tex")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{IngestBytes: ingestBytes}); err == nil || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("got %v", err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Errorf("the directory now contains %v (%v)", names, err)
	}
}

func TestAStoreWithAnotherFormatIsEmptied(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{IngestBytes: ingestBytes})
	if err != nil {
		t.Fatal(err)
	}
	b := s.NewBatch()
	b.SetPosition(part(t, s, "p", 0), 7)
	commit(t, b)
	closeStore(t, s)
	if err := os.WriteFile(filepath.Join(dir, "FORMAT"), []byte("millrace store 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir, Options{IngestBytes: ingestBytes}); err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	if got := dump(t, part(t, s, "p", 0)); got != "at 0 false" {
		t.Errorf("got %s", got)
	}
}

// Damage is detected when the store is opened or read, and the store is empty after the
// next Open at the latest.
// A crash can lose a file that another one names. The store is a function of the log, so
// it starts again instead of staying closed.
func TestAStoreWithoutItsManifestIsEmptied(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := part(t, s, "p", 0)
	b := s.NewBatch()
	b.SetPosition(p, 7)
	commit(t, b)
	closeStore(t, s)
	manifests, err := filepath.Glob(filepath.Join(dir, "db", "MANIFEST-*"))
	if err != nil || len(manifests) == 0 {
		t.Fatalf("no manifest: %v", err)
	}
	for _, name := range manifests {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	if got := dump(t, part(t, s, "p", 0)); got != "at 0 false" {
		t.Errorf("the store is not empty: %s", got)
	}
}

func TestADamagedStoreIsEmptied(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{IngestBytes: ingestBytes})
	if err != nil {
		t.Fatal(err)
	}
	p := part(t, s, "p", 0)
	b := s.NewBatch()
	for i := range 2000 {
		b.Put(p, 1, []byte(strconv.Itoa(i)), []byte(strings.Repeat("value", 200)))
	}
	b.SetPosition(p, 7)
	commit(t, b)
	closeStore(t, s)
	tables, err := filepath.Glob(filepath.Join(dir, "db", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("no tables: %v", err)
	}
	for _, name := range tables {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := 10; i < len(data); i += 100 {
			data[i] ^= 0xff
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = Open(dir, Options{IngestBytes: ingestBytes}); err != nil {
		t.Fatal(err)
	}
	if p = part(t, s, "p", 0); p.store.parts == nil {
		t.Fatal("no parts")
	}
	if _, ok, err := p.Get(nil, 1, []byte("1000")); err == nil && ok {
		t.Fatal("a damaged value was read")
	}
	closeStore(t, s)
	if s, err = Open(dir, Options{IngestBytes: ingestBytes}); err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	if got := dump(t, part(t, s, "p", 0)); got != "at 0 false" {
		t.Errorf("the damaged store is not empty: %s", got)
	}
}

// crashableFS keeps crash clones apart from two methods that would deadlock with a clone
// (pebble v2.1.7): Link takes the mutexes of MemFS in another order than Sync does, and
// ReuseForWrite takes the read lock twice, with the clone waiting in between.
type crashableFS struct {
	*vfs.MemFS
	clones sync.RWMutex
}

func (c *crashableFS) Link(oldname, newname string) error {
	c.clones.RLock()
	defer c.clones.RUnlock()
	return c.MemFS.Link(oldname, newname)
}

func (c *crashableFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	c.clones.RLock()
	defer c.clones.RUnlock()
	return c.MemFS.ReuseForWrite(oldname, newname, category)
}

func (c *crashableFS) CrashClone(cfg vfs.CrashCloneCfg) *vfs.MemFS {
	c.clones.Lock()
	defer c.clones.Unlock()
	return c.MemFS.CrashClone(cfg)
}

// The test simulates crashes at random writes to the disk, with none, half or all of the
// unsynced data lost. After each crash the store must be in the state after some commit:
// commit n sets the position and every key to n, so all of them must be equal.
func TestAfterACrashTheStoreIsInTheStateOfACommit(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	mem := &crashableFS{MemFS: vfs.NewCrashableMem()}
	var mu sync.Mutex // guards the variables below and rng: the store also writes in the background
	var crashes []*vfs.MemFS
	var from []int64 // for each crash, the last commit before it
	committed := int64(0)
	watch := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && rng.IntN(4) == 0 && len(crashes) < 400 {
			crashes = append(crashes, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[rng.IntN(3)], RNG: newRand(rng)}))
			from = append(from, committed)
		}
		return nil
	}))
	s := open(t, watch)
	p := part(t, s, "p", 0)
	const keys = 50
	for n := int64(1); n <= 30; n++ {
		b := s.NewBatch()
		size := 10
		if n%3 == 0 {
			size = 3 * ingestBytes / keys
		}
		value := append(binary.BigEndian.AppendUint64(nil, uint64(n)), make([]byte, size)...)
		for k := range keys {
			b.Put(p, Family(1+k%3), []byte{byte(k)}, value)
		}
		b.SetPosition(p, n)
		commit(t, b)
		mu.Lock()
		committed = n
		mu.Unlock()
	}
	closeStore(t, s)
	if len(crashes) < 20 {
		t.Fatalf("only %d writes", len(crashes))
	}
	for i, fs := range crashes {
		s := open(t, fs)
		p := part(t, s, "p", 0)
		next, ok, err := p.Position()
		if err != nil {
			t.Fatal(err)
		}
		if next > from[i]+1 {
			t.Errorf("crash %d: position %d, but the last commit was %d", i, next, from[i])
		}
		for k := range keys {
			value, have, err := p.Get(nil, Family(1+k%3), []byte{byte(k)})
			if err != nil {
				t.Fatal(err)
			}
			if have != ok || have && binary.BigEndian.Uint64(value) != uint64(next) {
				t.Fatalf("crash %d: position %d (%v), but key %d has %x (%v)", i, next, ok, k, value[:min(8, len(value))], have)
			}
		}
		closeStore(t, s)
	}
}

// A disk error at any write of a table fails the commit and nothing else: the batch is
// unchanged, and a retry succeeds.
func TestAFailedCommitChangesNothing(t *testing.T) {
	var armed atomic.Int64 // number of writes until one fails, that one included; 0: none fails
	full := errors.New("no space left on device")
	s := open(t, errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && strings.Contains(op.Path, "ingest") && armed.Add(-1) == 0 {
			return full
		}
		return nil
	})))
	defer closeStore(t, s)
	p := part(t, s, "p", 0)
	first := s.NewBatch()
	first.SetPosition(p, 1)
	commit(t, first)
	failures := 0
	for step := int64(1); ; step++ {
		b := s.NewBatch()
		for k := range 20 {
			b.Put(p, 1, []byte{byte(k)}, []byte(strings.Repeat(strconv.FormatInt(step, 10), ingestBytes/10)))
		}
		b.SetPosition(p, step+1)
		before := dump(t, p)
		armed.Store(step)
		err := b.Commit()
		armed.Store(0)
		if err == nil {
			break // past the last step
		}
		failures++
		if !errors.Is(err, full) {
			t.Fatalf("step %d: %v", step, err)
		}
		if got := dump(t, p); got != before {
			t.Fatalf("step %d: the failed commit changed the store", step)
		}
		commit(t, b)
		if next, _, err := p.Position(); next != step+1 || err != nil {
			t.Fatalf("step %d, after the retry: position %d, %v", step, next, err)
		}
	}
	if failures < 3 {
		t.Errorf("only %d steps could fail", failures)
	}
}

// newRand returns a generator seeded from r.
func newRand(r *rand.Rand) *rand.Rand { return rand.New(rand.NewPCG(r.Uint64(), 0)) }

func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1000, 200_000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			s, err := Open(b.TempDir(), Options{IngestBytes: ingestBytes})
			if err != nil {
				b.Fatal(err)
			}
			defer closeStore(b, s)
			p := part(b, s, "p", 0)
			rng := rand.New(rand.NewPCG(1, 2))
			batch := s.NewBatch()
			value := make([]byte, 150)
			n := 0
			for b.Loop() {
				batch.Put(p, 1, fmt.Appendf(nil, "%016x-%019x", rng.Uint64N(1_000_000)*0x9e3779b97f4a7c15, 0), value)
				if n++; n%size == 0 {
					commit(b, batch)
				}
			}
			commit(b, batch)
		})
	}
}

// The metrics describe the store, and are 0 if a scrape comes after Close.
func TestMetricsDescribeTheStoreUntilClose(t *testing.T) {
	s := open(t, vfs.NewMem())
	p := part(t, s, "p", 0)
	reg := prometheus.NewPedanticRegistry()
	s.Register(reg)
	b := s.NewBatch()
	for i := range 2000 {
		b.Put(p, 1, []byte(strconv.Itoa(i)), []byte(strings.Repeat("value", 200)))
	}
	commit(t, b)
	read := func() map[string]float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, f := range families {
			m := f.GetMetric()[0]
			out[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
		return out
	}
	have := read()
	if have["millrace_store_tables"] < 1 || have["millrace_store_ingested_bytes_total"] == 0 || have["millrace_store_bytes"] < have["millrace_store_ingested_bytes_total"] {
		t.Errorf("a table was ingested, but the metrics are %v", have)
	}
	closeStore(t, s)
	if have := read(); have["millrace_store_tables"] != 0 {
		t.Errorf("after Close the metrics are %v", have)
	}
}

func TestAFinderSeesTheStoreAtItsCreation(t *testing.T) {
	s := open(t, vfs.NewMem())
	defer closeStore(t, s)
	p := part(t, s, "p", 0)
	put := func(key, value string) {
		b := s.NewBatch()
		b.Put(p, 2, []byte(key), []byte(value))
		commit(t, b)
	}
	put("a", "1")
	put("ab", "2")
	finder, err := p.Finder(2)
	if err != nil {
		t.Fatal(err)
	}
	put("a", "3")
	put("b", "4")
	for key, want := range map[string]string{"a": "1", "ab": "2", "b": "", "": "", "abc": "", "0": ""} {
		got, ok, err := finder.Get([]byte(">"), []byte(key))
		if err != nil || ok != (want != "") || string(got) != ">"+want {
			t.Errorf("%q: %q, %v, %v, want %q", key, got, ok, err, want)
		}
	}
	if err := finder.Close(); err != nil {
		t.Error(err)
	}
	if _, err := p.Finder(2); err != nil { // closed by the store
		t.Fatal(err)
	}
}
