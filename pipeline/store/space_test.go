package store

import (
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// fullFS is a file system on a disk that can be full.
type fullFS struct {
	vfs.FS
	failed chan struct{} // a value for each failed write, as far as there is room

	mu    sync.Mutex // guards the fields below
	usage vfs.DiskUsage
	err   error // of all writes; nil if there is space
}

func newFullFS() *fullFS {
	return &fullFS{FS: vfs.NewMem(), failed: make(chan struct{}, 1), usage: vfs.DiskUsage{AvailBytes: 1 << 30, TotalBytes: 10 << 30}}
}

func (f *fullFS) set(avail uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.usage.AvailBytes, f.err = avail, err
}

func (f *fullFS) fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		select {
		case f.failed <- struct{}{}:
		default:
		}
	}
	return f.err
}

func (f *fullFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.usage, nil
}

func (f *fullFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.fault(); err != nil {
		return nil, err
	}
	file, err := f.FS.Create(name, category)
	return &fullFile{file, f}, err
}

func (f *fullFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := f.fault(); err != nil {
		return nil, err
	}
	file, err := f.FS.ReuseForWrite(oldname, newname, category)
	return &fullFile{file, f}, err
}

type fullFile struct {
	vfs.File
	fs *fullFS
}

// Write writes half of the bytes to a full disk.
func (f *fullFile) Write(b []byte) (int, error) {
	if err := f.fs.fault(); err != nil {
		n, _ := f.File.Write(b[:len(b)/2])
		return n, err
	}
	return f.File.Write(b)
}

func openFull(t *testing.T, fs *fullFS, fatal func(error)) (*Store, *Part) {
	t.Helper()
	s, err := Open("data", Options{FS: fs, Fatal: fatal})
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Part("p", 0, "i")
	if err != nil {
		t.Fatal(err)
	}
	return s, p
}

// positionOf returns the position of a part.
func positionOf(t *testing.T, p *Part) int64 {
	t.Helper()
	got, _, err := p.Position()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestABatchIsRefusedWithoutSpaceAndAcceptedAfterwards(t *testing.T) {
	fs := newFullFS()
	s, p := openFull(t, fs, nil)
	b := s.NewBatch()
	b.SetPosition(p, 1)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	fs.set(maxReserve-1, nil) // less than the reserve
	b.SetPosition(p, 2)
	err := b.Commit()
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "255 MiB are free") {
		t.Fatalf("without space: %v", err)
	}
	if got := positionOf(t, p); got != 1 || b.Len() != 1 {
		t.Errorf("the refused batch left position %d and has %d changes", got, b.Len())
	}
	if _, err := s.Waiting(); !errors.Is(err, ErrNoSpace) {
		t.Errorf("waiting: %v", err)
	}
	fs.set(1<<30, nil)
	if _, err := s.Waiting(); err != nil {
		t.Errorf("with space, still waiting: %v", err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := positionOf(t, p); got != 2 {
		t.Errorf("position %d after the second try", got)
	}
	closeStore(t, s)
}

// Pebble cannot continue after a failed write, so the write waits.
func TestAWriteToAFullOrReadOnlyDiskWaitsForSpace(t *testing.T) {
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EACCES} {
		t.Run(full.Error(), func(t *testing.T) {
			fs := newFullFS()
			s, p := openFull(t, fs, nil)
			fs.set(1<<30, full)
			done := make(chan error)
			go func() {
				b := s.NewBatch()
				b.SetPosition(p, 7)
				for i := range 1000 {
					b.Put(p, 1, []byte{byte(i >> 8), byte(i)}, make([]byte, 100))
				}
				err := b.Commit()
				if err == nil {
					err = s.db.Flush() // a commit without sync does not wait for its write
				}
				done <- err
			}()
			<-fs.failed
			<-fs.failed // failed notes the fault before the second try
			if _, err := s.Waiting(); !errors.Is(err, ErrNoSpace) || !errors.Is(err, full) {
				t.Errorf("waiting: %v", err)
			}
			fs.set(1<<30, nil)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if _, err := s.Waiting(); err != nil {
				t.Errorf("with space, still waiting: %v", err)
			}
			closeStore(t, s)
			s, p = openFull(t, fs, nil)
			if got := positionOf(t, p); got != 7 {
				t.Errorf("position %d after opening again", got)
			}
			closeStore(t, s)
		})
	}
}

func TestAStoreThatGivesUpReportsAFatalError(t *testing.T) {
	fs := newFullFS()
	fatal := make(chan error, 8)
	s, p := openFull(t, fs, func(err error) {
		select {
		case fatal <- err:
		default:
		}
		select {} // must not return, and locks are held
	})
	fs.set(1<<30, syscall.ENOSPC)
	go func() {
		b := s.NewBatch()
		b.SetPosition(p, 7)
		b.Put(p, 1, []byte("k"), make([]byte, 1<<20))
		_ = b.Commit() // its error is the fatal one
		_ = s.db.Flush()
	}()
	<-fs.failed
	s.GiveUp()
	s.GiveUp() // twice is the same
	if err := <-fatal; !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("the fatal error is %v", err)
	}
	// Locks of the store are held for ever, so it cannot be closed.
}

func TestAStoreOnAFullDiskIsNotOpened(t *testing.T) {
	fs := newFullFS()
	fs.set(minOpen-1, nil)
	if _, err := Open("data", Options{FS: fs}); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "free space, and start again") {
		t.Errorf("opened with %v", err)
	}
	fs.set(1<<30, syscall.ENOSPC)
	if _, err := Open("data", Options{FS: fs}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("opened with %v", err)
	}
	fs.set(1<<30, nil)
	s, _ := openFull(t, fs, nil)
	closeStore(t, s)
}
