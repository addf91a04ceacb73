package private_test

import (
	"strings"
	"testing"

	"millrace/pipeline/private"
)

func TestNarrowSaysWhatToDoIfTheModeCannotBeChanged(t *testing.T) {
	const dir = "/proc/self/fdinfo" // even root cannot change its mode
	if err := private.Narrow(dir); err == nil || !strings.HasPrefix(err.Error(), "other users may be able to read the data: chmod "+dir) || !strings.HasSuffix(err.Error(), "; remove their rights: chmod -R go-rwx "+dir) {
		t.Error(err)
	}
}
