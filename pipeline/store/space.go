package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// ErrNoSpace is wrapped by the errors of a store whose disk is full or does not accept
// writes. The failed operation changed nothing and can be repeated.
var ErrNoSpace = errors.New("the disk accepts no writes")

// The reserve is the free space that batches leave to Pebble, which must be able to write
// its memtables and its manifest: a failure to do so cannot be undone.
const (
	maxReserve   = 256 << 20
	reserveShare = 10 // at most one tenth of the disk
)

// minOpen is the free space that Open needs, if the reserve is not smaller: Pebble writes
// the memtables of the last run.
const minOpen = 16 << 20

// Waits between two attempts of a write.
const (
	minRetry = 100 * time.Millisecond
	maxRetry = 2 * time.Second
)

// openLimit is how long Open waits for the disk before the store gives up.
const openLimit = 30 * time.Second

// space watches the disk of a store. A batch needs free space beyond the reserve, and is
// refused without it. If Pebble's own writes fail because the disk is full, they wait
// until there is space, because Pebble cannot continue after such an error. Its methods
// are safe for concurrent use.
type space struct {
	fs  vfs.FS
	dir string
	log *slog.Logger

	given chan struct{} // closed by giveUp
	fatal func(error)   // [Options.Fatal]

	mu      sync.Mutex // guards the fields below
	patient bool       // the store is open, so writes wait
	gaveUp  bool
	waiting int   // writes that wait
	fault   error // nil: the disk accepts writes
	since   time.Time
}

func newSpace(fs vfs.FS, dir string, log *slog.Logger, fatal func(error)) *space {
	return &space{fs: fs, dir: dir, log: log, given: make(chan struct{}), fatal: fatal}
}

// admit returns an error that wraps ErrNoSpace if the disk has no room for a batch of this
// size.
func (s *space) admit(bytes int) error {
	err := s.require(func(reserve uint64) uint64 { return reserve + uint64(bytes) })
	if err != nil {
		s.failed(err)
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.succeeded()
	return nil
}

// require returns an error that wraps ErrNoSpace if less is free than need returns for the
// reserve. Sizes are in bytes.
func (s *space) require(need func(reserve uint64) uint64) error {
	usage, err := s.fs.GetDiskUsage(s.dir)
	if err != nil {
		return nil //nolint:nilerr // unknown, so the write itself shows it
	}
	if need := need(min(maxReserve, usage.TotalBytes/reserveShare)); usage.AvailBytes < need {
		return fmt.Errorf("%w: %d MiB are free in %s, and %d MiB are needed", ErrNoSpace, usage.AvailBytes>>20, s.dir, need>>20)
	}
	return nil
}

// succeeded notes that the disk accepts writes, unless another write waits. The caller
// holds mu.
func (s *space) succeeded() {
	if s.fault != nil && s.waiting == 0 {
		s.log.Info("the disk of the store accepts writes again", "dir", s.dir, "after", time.Since(s.since).Round(time.Second))
		s.fault = nil
	}
}

// failed notes that the disk accepts no writes.
func (s *space) failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault == nil {
		s.since = time.Now()
		s.log.Error("the store waits: free space on its disk, or make it writable; it continues by itself", "dir", s.dir, "err", err)
	}
	s.fault = err
}

// try calls write until it succeeds or fails for another reason than a full disk. If the
// store gives up, it ends with a fatal error: Pebble would panic in some places instead.
func (s *space) try(write func() error) (err error) {
	err = write()
	if err == nil || !s.isFull(err) {
		return err
	}
	s.failed(fmt.Errorf("%w: %w", ErrNoSpace, err))
	s.mu.Lock()
	s.waiting++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		if s.waiting--; err == nil {
			s.succeeded()
		}
		s.mu.Unlock()
	}()
	for wait := minRetry; ; wait = min(2*wait, maxRetry) {
		timer := time.NewTimer(wait)
		select {
		case <-s.given:
			timer.Stop()
			s.fatal(fmt.Errorf("%w: %w", ErrNoSpace, err))
			panic("store: Options.Fatal returned")
		case <-timer.C:
		}
		if err = write(); err == nil || !s.isFull(err) {
			return err
		}
	}
}

// isFull reports whether an error means that the disk accepts no writes, and writes wait.
func (s *space) isFull(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.patient {
		return false
	}
	for _, full := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EACCES, syscall.EPERM} {
		if errors.Is(err, full) {
			return true
		}
	}
	return false
}

func (s *space) setPatient(patient bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.patient = patient
}

// giveUp turns waiting writes, and later ones, into fatal errors.
func (s *space) giveUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gaveUp {
		s.gaveUp = true
		close(s.given)
	}
}

// check returns the fault, nil if the disk accepts writes, and when it began.
func (s *space) check() (since time.Time, fault error) {
	s.mu.Lock()
	stale := s.fault != nil && s.waiting == 0
	s.mu.Unlock()
	if stale {
		_ = s.admit(0) // the batch may be retried by another worker; the result is in fault
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.since, s.fault
}

// patientFS is a file system whose writes wait while the disk is full. A failed sync is
// not repeated: the kernel may have dropped what could not be written.
type patientFS struct {
	vfs.FS
	space *space
}

func (p patientFS) Unwrap() vfs.FS { return p.FS }

func (p patientFS) Create(name string, category vfs.DiskWriteCategory) (f vfs.File, err error) {
	err = p.space.try(func() error { f, err = p.FS.Create(name, category); return err })
	return p.file(f, err)
}

func (p patientFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (f vfs.File, err error) {
	err = p.space.try(func() error { f, err = p.FS.OpenReadWrite(name, category, opts...); return err })
	return p.file(f, err)
}

// ReuseForWrite creates a new file if the rename fails in the middle, as its contract
// allows.
func (p patientFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (f vfs.File, err error) {
	err = p.space.try(func() error {
		f, err = p.FS.ReuseForWrite(oldname, newname, category)
		if errors.Is(err, os.ErrNotExist) {
			f, err = p.FS.Create(newname, category)
		}
		return err
	})
	return p.file(f, err)
}

func (p patientFS) Link(oldname, newname string) error {
	return p.space.try(func() error { return p.FS.Link(oldname, newname) })
}

func (p patientFS) Rename(oldname, newname string) error {
	return p.space.try(func() error { return p.FS.Rename(oldname, newname) })
}

func (p patientFS) MkdirAll(dir string, perm os.FileMode) error {
	return p.space.try(func() error { return p.FS.MkdirAll(dir, perm) })
}

func (p patientFS) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &patientFile{f, p.space}, nil
}

// patientFile is a file of a [patientFS].
type patientFile struct {
	vfs.File
	space *space
}

// Write implements [vfs.File]. After a partial write it continues behind it.
func (f *patientFile) Write(b []byte) (n int, err error) {
	err = f.space.try(func() error {
		done, err := f.File.Write(b[n:])
		n += done
		return err
	})
	return n, err
}

// WriteAt implements [vfs.File].
func (f *patientFile) WriteAt(b []byte, offset int64) (n int, err error) {
	err = f.space.try(func() error {
		done, err := f.File.WriteAt(b[n:], offset+int64(n))
		n += done
		return err
	})
	return n, err
}

// Preallocate implements [vfs.File].
func (f *patientFile) Preallocate(offset, length int64) error {
	return f.space.try(func() error { return f.File.Preallocate(offset, length) })
}
