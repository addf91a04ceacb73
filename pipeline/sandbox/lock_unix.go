//go:build unix

package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"millrace/pipeline/private"
)

// lockDir locks a directory for this sandbox. The lock ends when it is closed or the
// process ends, even by a crash.
func lockDir(dir string) (io.Closer, error) {
	f, err := private.Open(filepath.Join(dir, "LOCK"), os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%s is in use by another sandbox: stop that sandbox, or use another directory", dir)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
