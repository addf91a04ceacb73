package projection

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"millrace/pipeline/projector/projectiontest"
	"millrace/pipeline/store"
)

// countingFS counts what is read from and written to tables and logs of a store.
type countingFS struct {
	vfs.FS
	read   atomic.Int64 // bytes
	tables atomic.Int64 // that were created
}

func (c *countingFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, ".sst") {
		c.tables.Add(1)
	}
	return c.FS.Create(name, category)
}

func (c *countingFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := c.FS.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	return &countedFile{f, c}, nil
}

type countedFile struct {
	vfs.File
	fs *countingFS
}

func (f *countedFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	f.fs.read.Add(int64(n))
	return n, err
}

func (f *countedFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.fs.read.Add(int64(n))
	return n, err
}

// What a projector reads from its store when it continues after kill -9 does not grow with
// the number of events, and nothing is compacted before it is ready.
func TestARestartReadsNoMoreOfALongerHistory(t *testing.T) {
	const few, many, batch = 4_000, 60_000, 2_000
	read := map[int]int64{}
	for _, events := range []int{few, many} {
		w := newWorld(t)
		w.stored = store.Options{IngestBytes: 256 << 10, HoldCompactions: true} // many tables
		fw := w.start()
		for n := range events {
			w.add(projectiontest.UserCreated, fmt.Sprintf("u-%d", n*7919%1_000_003))
			if len(w.log) == events-batch { // compactions have come as far in both cases
				if err := fw.ps.assignedUnits()[0].lanes[0].part.Purge(); err != nil {
					t.Fatal(err)
				}
			}
			if len(w.log)%batch == 0 {
				fw.batch(batch)
				fw.commit()
				fw.handler.EndBatch(true)
			}
		}
		fw.kill(rand.New(rand.NewPCG(1, 2)), 100)
		counted := &countingFS{FS: w.disk}
		w.wrap = func(vfs.FS) vfs.FS { return counted }
		fw = w.start()
		read[events] = counted.read.Load()
		if fw.at != int64(events-batch) {
			t.Errorf("after %d events, the worker continues at %d", events, fw.at)
		}
		if n := counted.tables.Load(); n > 1 { // the last writes
			t.Errorf("after %d events, %d tables were written before the worker was ready", events, n)
		}
		fw.repeat(3)
		fw.run()
		if got := len(fw.states()); got != events {
			t.Errorf("%d aggregates, not %d", got, events)
		}
		fw.stop()
	}
	t.Logf("bytes read, by number of events: %v", read)
	// The filter has 8 bytes for each event, the history has more.
	if more := read[many] - read[few]; more > 4*(many-few) {
		t.Errorf("a restart read %d bytes more after %d events than after %d", more, many, few)
	}
}
