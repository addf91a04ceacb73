//go:build !unix

package cli

// umask does nothing: this system has no modes of files.
func umask(int) int { return 0 }
