// Package private creates the files and directories of all programs. Only their owner can
// read them, because most of them hold data of events, and some hold plaintext.
//
// [Umask] makes that true for the files of libraries, too. The other functions do not rely
// on it: they also narrow what exists already with a wider mode.
package private

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600
)

// Umask is the mask of a program's files and directories.
const Umask = int(0o777 &^ dirMode)

// Dir creates a directory and its missing parents. It does not change an existing one: see
// [Narrow].
func Dir(path string) error { return os.MkdirAll(path, dirMode) }

// TempDir creates a temporary directory, as [os.MkdirTemp] does.
func TempDir(pattern string) (string, error) { return os.MkdirTemp("", pattern) }

// Open opens a file to write, with further flags of [os.OpenFile], and creates it if it
// does not exist. An existing file with a wider mode is narrowed, unless it is not a regular
// file, such as a pipe.
func Open(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|os.O_CREATE, fileMode)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() && tooWide(info.Mode(), fileMode) {
		err = f.Chmod(fileMode)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("other users can read %s, and this cannot be changed: %w", path, err), f.Close())
	}
	return f, nil
}

// Create creates or truncates a file to write.
func Create(path string) (*os.File, error) {
	// Truncated only after its mode is right, so a refusal leaves the file as it was.
	f, err := Open(path, os.O_WRONLY)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() {
		return f, nil
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Replace replaces a file atomically: a reader, or the next process after a crash, finds
// either the old or the new content. The new content is durable when Replace returns.
func Replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp") // its mode is fileMode
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Narrow removes the rights of other users from a data directory and everything in it. It
// continues after an error, and returns the first one. Symbolic links are not followed. The
// directory lost+found belongs to the file system.
func Narrow(dir string) error {
	var first error
	note := func(err error) {
		if first == nil && err != nil && !errors.Is(err, fs.ErrNotExist) { // a file may be deleted meanwhile
			first = err
		}
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error { // the function returns no other error
		switch {
		case d != nil && d.IsDir() && d.Name() == "lost+found":
			return fs.SkipDir
		case err != nil:
			note(err)
			return nil
		}
		mode := fileMode
		if d.IsDir() {
			mode = dirMode
		}
		info, err := d.Info()
		if err == nil && (d.IsDir() || info.Mode().IsRegular()) && tooWide(info.Mode(), mode) {
			err = os.Chmod(path, mode)
		}
		note(err)
		return nil
	})
	if first != nil {
		return fmt.Errorf("other users may be able to read the data: %w; remove their rights: chmod -R go-rwx %s", first, dir)
	}
	return nil
}

// tooWide reports whether a mode has rights that another one does not have.
func tooWide(have, want fs.FileMode) bool { return have.Perm()&^want&0o077 != 0 }
