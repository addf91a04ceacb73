// Package store keeps sorted entries and a log position on disk, for each partition of
// each projection, and changes both atomically. It does not interpret the entries.
//
// A store is derived from the log and can be rebuilt from it. So a commit does not wait
// for the disk. After kill -9 no commit is lost; after a power failure the last commits
// may be lost. In both cases the store is in the state after some commit.
//
// Start at [Open], then [Store.Part], [Part.View] and [Batch]. [Store] and [Part] are safe
// for concurrent use; a [Batch] or a [Finder] belongs to one goroutine at a time.
//
// # On disk
//
// A directory contains:
//
//	FORMAT    "millrace store 2\n"; another number is another format. A directory
//	          without this file is not a store, and Open refuses it unless it is empty
//	LOCK      locked by the process that has the store open
//	PID       id of that process
//	DAMAGED   exists after a checksum error: the next Open starts with an empty store
//	ingest/   tables being written; emptied by Open
//	db/       Pebble, at its format version 24 (see formatVersion)
//
// Keys in db begin with the number of their part, four bytes, big-endian. Part 0 is for
// the store itself:
//
//	00000000 'n'                              next free number, four bytes
//	00000000 'p' name 00 partition(4 bytes)   number, four bytes, and the part's identity
//	part 00                                   position, eight bytes, big-endian
//	part family key                           an entry; families are 1 to 255
//
// A part with another identity than expected is deleted by one range delete and gets a
// new number, so none of its old entries can be read by mistake.
package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"millrace/pipeline"
	"millrace/pipeline/private"
)

const (
	format        = "millrace store 2\n"
	formatVersion = pebble.FormatValueSeparation // 24
	level0Stop    = 64                           // overlapping tables in level 0 at which writes stop
	maxHeld       = 64 << 20                     // bytes that are written at most while compactions are held
)

// Options configure a [Store]. The zero value is ready to use.
type Options struct {
	CacheBytes int64        // size of the block cache; default 64 MiB
	Logger     *slog.Logger // default: no logs
	FS         vfs.FS       // for tests; default: the operating system's file system

	// Fatal is called after a disk error from which Pebble cannot continue, such as a failed
	// write of its manifest, while locks of the store are held. It must not return, and must
	// not use the store. After a restart the store is in the state before. The default
	// panics.
	Fatal func(error)

	// IngestBytes is the size from which a batch is written as sorted tables and
	// ingested; default 8 MiB. A smaller batch goes through write-ahead log and
	// memtable, because its tables would be small, and some are never compacted into
	// larger ones.
	IngestBytes int

	// HoldCompactions makes compactions wait until [Store.Compact], so that they take
	// nothing from a start. They begin by themselves if much is written before.
	HoldCompactions bool
}

// A Store is open in one process at a time. It is safe for concurrent use.
type Store struct {
	dir  string
	fs   vfs.FS
	log  *slog.Logger
	db   *pebble.DB
	lock *pebble.Lock

	space *space

	compactions *compactions
	held        atomic.Int64 // bytes that may be written until compactions begin

	ingestBytes int
	writer      sstable.WriterOptions // of tables to be ingested

	mu      sync.Mutex // guards the fields below
	next    uint32     // next free part number
	parts   map[partName]*Part
	tables  int                  // number of tables written, to name the next
	finders map[*Finder]struct{} // the open ones
	closed  bool
}

type partName struct {
	name      string
	partition int32
}

// ErrInUse is wrapped by the error of [Open] if another process has the store open.
var ErrInUse = errors.New("in use")

// Open opens the store in a directory, and creates the directory if it does not exist. It
// empties a store that is damaged or has another format. It refuses a directory that is
// not a store and not empty.
func Open(dir string, o Options) (_ *Store, err error) {
	s := &Store{dir: dir, fs: o.FS, log: o.Logger, parts: map[partName]*Part{}, finders: map[*Finder]struct{}{}, compactions: newCompactions()}
	if s.fs == nil {
		s.fs = vfs.Default
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if o.Fatal == nil {
		o.Fatal = func(err error) { panic(err) }
	}
	s.space = newSpace(s.fs, dir, s.log, o.Fatal)
	s.fs = patientFS{s.fs, s.space}
	if o.CacheBytes <= 0 {
		o.CacheBytes = 64 << 20
	}
	if s.ingestBytes = o.IngestBytes; s.ingestBytes <= 0 {
		s.ingestBytes = 8 << 20
	}
	if err := s.fs.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the data directory: %w", err)
	}
	if err := s.space.require(func(reserve uint64) uint64 { return min(minOpen, reserve/2) }); err != nil {
		return nil, fmt.Errorf("opening the store: %w; free space, and start again", err)
	}
	if err := s.claim(); err != nil {
		return nil, err
	}
	if o.FS == nil {
		if err := private.Narrow(dir); err != nil {
			s.log.Warn("the data directory is not private", "dir", dir, "err", err)
		}
	}
	// Without patience, Pebble would retry a flush in a loop without a pause.
	s.space.setPatient(true)
	defer time.AfterFunc(openLimit, s.space.giveUp).Stop()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.lock.Close())
		}
	}()
	err = s.open(o)
	// A file that another one names is missing after a crash if the file system lost only
	// one of the two entries.
	if pebble.IsCorruptionError(err) || errors.Is(err, os.ErrNotExist) {
		s.log.Error("the store is damaged; starting with an empty one", "dir", dir, "err", err)
		if err := s.wipe(); err != nil {
			return nil, err
		}
		err = s.open(o)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the store in %s: %w", dir, err)
	}
	return s, nil
}

func (s *Store) path(names ...string) string {
	return s.fs.PathJoin(append([]string{s.dir}, names...)...)
}

// claim checks that the directory is a store, or empty, and locks it.
func (s *Store) claim() error {
	have, err := s.read("FORMAT")
	if errors.Is(err, os.ErrNotExist) {
		names, err := s.fs.List(s.dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			// An interrupted Open may leave LOCK and FORMAT.tmp.
			if n != "LOCK" && n != "FORMAT.tmp" && n != "lost+found" {
				return fmt.Errorf("%s is not a store and not empty (it contains %s); give the store a directory of its own", s.dir, n)
			}
		}
	} else if err != nil {
		return err
	}
	if s.lock, err = pebble.LockDirectory(s.dir, s.fs); err != nil {
		by := ""
		if pid, err := s.read("PID"); err == nil {
			by = " by process " + strings.TrimSpace(pid)
		}
		return fmt.Errorf("%s is %w%s (%w); give each worker a data directory of its own", s.dir, ErrInUse, by, err)
	}
	// FORMAT first: without it, a later Open would refuse the other files.
	if err = s.prepare(have); err == nil {
		err = s.put("PID", strconv.Itoa(os.Getpid())+"\n", false)
	}
	if err != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// prepare writes FORMAT, or wipes the store if it is damaged or has another format. have
// is the content of FORMAT, "" if it does not exist.
func (s *Store) prepare(have string) error {
	_, err := s.fs.Stat(s.path("DAMAGED"))
	switch {
	case err == nil:
		s.log.Error("the store is marked as damaged; starting with an empty one", "dir", s.dir)
	case !errors.Is(err, os.ErrNotExist):
		return err
	case have != "" && have != format:
		s.log.Warn("the store has another format; starting with an empty one", "dir", s.dir, "format", have, "want", format)
	case have == "":
		return s.write("FORMAT", format)
	default:
		return nil
	}
	return s.wipe()
}

// wipe empties the store. If it is interrupted, the next Open repeats it, because DAMAGED
// exists until the end.
func (s *Store) wipe() error {
	if err := s.write("DAMAGED", ""); err != nil {
		return err
	}
	for _, name := range []string{"db", "ingest"} {
		if err := s.fs.RemoveAll(s.path(name)); err != nil {
			return err
		}
	}
	if err := s.write("FORMAT", format); err != nil {
		return err
	}
	return s.fs.Remove(s.path("DAMAGED"))
}

func (s *Store) read(name string) (string, error) {
	f, err := s.fs.Open(s.path(name))
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // opened for reading only
	buf := make([]byte, 64)
	n, err := f.ReadAt(buf, 0)
	if n == 0 && err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return string(buf[:n]), nil
}

// write replaces a small file atomically and durably.
func (s *Store) write(name, text string) error {
	if err := s.put(name, text, true); err != nil {
		return err
	}
	d, err := s.fs.OpenDir(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// put replaces a small file atomically. Without sync it does not wait for the disk, which
// may be busy after a restart.
func (s *Store) put(name, text string, sync bool) error {
	tmp := s.path(name + ".tmp")
	f, err := s.fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(text))
	if sync {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.fs.Rename(tmp, s.path(name))
}

func (s *Store) open(o Options) error {
	if err := s.fs.RemoveAll(s.path("ingest")); err != nil {
		return err
	}
	if err := s.fs.MkdirAll(s.path("ingest"), 0o700); err != nil {
		return err
	}
	opts := &pebble.Options{
		FS:                          s.fs,
		Logger:                      logger{s.log, o.Fatal},
		FormatMajorVersion:          formatVersion,
		CacheSize:                   o.CacheBytes,
		MemTableSize:                16 << 20,
		MemTableStopWritesThreshold: 4,
		// Tables whose keys are in the order of the log are never compacted. The other
		// tables collect in level 0 until a compaction is worth its cost; the large
		// LBaseMaxBytes lets it write directly to the lowest level.
		L0CompactionThreshold: 16,
		L0StopWritesThreshold: level0Stop,
		LBaseMaxBytes:         4 << 30,
		MaxOpenFiles:          512,
		WALBytesPerSync:       1 << 20,
		EventListener:         &pebble.EventListener{DataCorruption: func(i pebble.DataCorruptionInfo) { s.damaged(i.Details) }},
	}
	opts.TargetFileSizes[0] = 16 << 20 // doubles with each level
	opts.Experimental.CompactionScheduler = s.compactions
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	opts.EnsureDefaults()
	db, err := pebble.Open(s.path("db"), opts)
	if err != nil {
		return err
	}
	s.db, s.writer = db, opts.MakeWriterOptions(0, db.TableFormat())
	if err := s.loadParts(); err != nil {
		return errors.Join(err, db.Close())
	}
	s.held.Store(maxHeld)
	// Too many tables in level 0 would stop the writes.
	if !o.HoldCompactions || db.Metrics().Levels[0].Sublevels >= level0Stop/2 {
		s.Compact()
	}
	return nil
}

// Compact allows compactions, if they were held.
func (s *Store) Compact() {
	s.held.Store(0)
	s.compactions.start()
}

// wrote notes that a batch was written. Compactions that are held begin after maxHeld.
func (s *Store) wrote(bytes int) {
	if left := s.held.Load(); left > 0 && s.held.Add(-int64(bytes)) <= 0 {
		s.compactions.start()
	}
}

// Waiting returns an error that wraps [ErrNoSpace] while the store waits for its disk to
// accept writes, and since when.
func (s *Store) Waiting() (since time.Time, err error) { return s.space.check() }

// GiveUp makes a write that waits for the disk call [Options.Fatal], also a later one.
func (s *Store) GiveUp() { s.space.giveUp() }

// Close closes the store and its Finders. The caller must have closed all views, and must
// not use parts of the store any more.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	finders := slices.Collect(maps.Keys(s.finders))
	s.mu.Unlock()
	var err error
	for _, f := range finders {
		err = errors.Join(err, f.Close())
	}
	return errors.Join(err, s.db.Close(), s.fs.Remove(s.path("PID")), s.lock.Close())
}

// check turns a corruption error into a fatal one and marks the store as damaged. It
// returns other errors unchanged.
func (s *Store) check(err error) error {
	if !pebble.IsCorruptionError(err) {
		return err
	}
	s.damaged(err)
	return pipeline.Fatal("the store in %s is damaged: %w; the next start rebuilds it from the log", s.dir, err)
}

// damaged marks the store as damaged, so that the next Open empties it.
func (s *Store) damaged(err error) {
	s.log.Error("the store is damaged; the next start rebuilds it from the log", "dir", s.dir, "err", err)
	if err := s.write("DAMAGED", ""); err != nil {
		s.log.Error("cannot mark the store as damaged; delete its directory before the next start", "dir", s.dir, "err", err)
	}
}

// Keys of part 0.
var (
	keyNext  = []byte{0, 0, 0, 0, 'n'}
	keyParts = []byte{0, 0, 0, 0, 'p'}
)

func (n partName) key() []byte {
	return binary.BigEndian.AppendUint32(append(append(keyParts[:len(keyParts):len(keyParts)], n.name...), 0), uint32(n.partition))
}

// loadParts reads the parts and the next free number.
func (s *Store) loadParts() error {
	s.next = 1
	value, ok, err := get(s.db, keyNext, nil)
	if err != nil {
		return err
	}
	if ok && len(value) == 4 {
		s.next = binary.BigEndian.Uint32(value)
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: keyParts, UpperBound: []byte{0, 0, 0, 0, 'p' + 1}})
	if err != nil {
		return err
	}
	for it.First(); it.Valid(); it.Next() {
		key, value := it.Key()[len(keyParts):], it.Value()
		if len(key) < 5 || len(value) < 4 {
			return errors.Join(pebble.ErrCorruption, it.Close())
		}
		n := partName{string(key[:len(key)-5]), int32(binary.BigEndian.Uint32(key[len(key)-4:]))}
		s.parts[n] = &Part{store: s, id: binary.BigEndian.Uint32(value), name: n, identity: string(value[4:])}
	}
	return errors.Join(it.Error(), it.Close())
}

// Part returns the part of a partition of a projection. identity names the source of its
// entries and the code that derived them. If the part has another identity, Part deletes
// it and returns an empty one.
func (s *Store) Part(projection string, partition int32, identity string) (*Part, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := partName{projection, partition}
	if p := s.parts[n]; p != nil {
		if p.identity == identity {
			return p, nil
		}
		s.log.Warn("the part has another identity; starting with an empty one", "projection", projection, "partition", partition, "have", p.identity, "want", identity)
	}
	return s.create(n, identity)
}

// Reset deletes the part and returns an empty one with the same name and identity.
func (s *Store) Reset(p *Part) (*Part, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.create(p.name, p.identity)
}

// create adds an empty part, and deletes the one of the same name. The caller holds mu.
func (s *Store) create(n partName, identity string) (*Part, error) {
	p := &Part{store: s, id: s.next, name: n, identity: identity}
	b := s.db.NewBatch()
	defer b.Close() //nolint:errcheck // the commit has its own error
	err := errors.Join(
		b.Set(keyNext, binary.BigEndian.AppendUint32(nil, s.next+1), nil),
		b.Set(n.key(), append(binary.BigEndian.AppendUint32(nil, p.id), identity...), nil),
	)
	if old := s.parts[n]; old != nil {
		err = errors.Join(err, b.DeleteRange(binary.BigEndian.AppendUint32(nil, old.id), binary.BigEndian.AppendUint32(nil, old.id+1), nil))
	}
	if err == nil {
		err = b.Commit(pebble.Sync)
	}
	if err != nil {
		return nil, s.check(err)
	}
	s.next++
	s.parts[n] = p
	return p, nil
}

// logger passes Pebble's log messages on. Its info messages are about single files, so
// they have the debug level.
type logger struct {
	log   *slog.Logger
	fatal func(error)
}

func (l logger) Infof(format string, args ...any) {
	l.log.Debug("store: " + fmt.Sprintf(format, args...))
}
func (l logger) Errorf(format string, args ...any) {
	l.log.Error("store: " + fmt.Sprintf(format, args...))
}

// Fatalf implements [pebble.Logger]. It must not return.
func (l logger) Fatalf(format string, args ...any) {
	l.fatal(fmt.Errorf("store: "+format, args...))
	panic("store: Options.Fatal returned")
}
