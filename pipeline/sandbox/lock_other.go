//go:build !unix

package sandbox

import (
	"errors"
	"io"
)

// lockDir always fails, because this system has no flock.
func lockDir(string) (io.Closer, error) {
	return nil, errors.New("cannot lock a data directory on this system: run the sandbox in memory")
}
