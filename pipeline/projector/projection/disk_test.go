package projection

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"millrace/pipeline"
	"millrace/pipeline/store"
)

// fullDisk is a disk that a test can fill.
type fullDisk struct {
	vfs.FS
	full bool
}

func (d *fullDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	usage := vfs.DiskUsage{AvailBytes: 1 << 30, TotalBytes: 1 << 30}
	if d.full {
		usage.AvailBytes = 0
	}
	return usage, nil
}

// While the disk is full, batches are rolled back and read again, and nothing is
// published that is not in the store.
func TestAFullDiskRollsBatchesBackUntilThereIsSpace(t *testing.T) {
	w := newWorld(t)
	w.some(60)
	disk := &fullDisk{FS: w.disk}
	w.wrap = func(vfs.FS) vfs.FS { return disk }
	fw := w.start()
	fw.batch(20)
	fw.commit()
	fw.handler.EndBatch(true)
	published, states := len(w.committedSnapshots), fw.states()

	disk.full = true
	for range 3 {
		for n := int64(20); n < 40; n++ {
			if err := fw.handler.Handle(t.Context(), &w.log[n], &fw.out); err != nil {
				t.Fatal(err)
			}
		}
		err := fw.handler.Flush(t.Context(), &fw.out)
		if !errors.Is(err, store.ErrNoSpace) || pipeline.ClassOf(err) != pipeline.ClassAbort {
			t.Fatalf("the flush to a full disk returned %v, of class %v", err, pipeline.ClassOf(err))
		}
		fw.abort(20)
	}
	if n := len(w.committedSnapshots); n != published {
		t.Errorf("%d snapshots were published without being stored", n-published)
	}
	same(t, "store", fw.states(), states)

	disk.full = false
	fw.run()
	same(t, "store", fw.states(), w.folded())
	same(t, "snapshots", w.published(), w.folded())
	fw.stop()
}
