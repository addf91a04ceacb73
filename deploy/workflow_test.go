package deploy_test

import (
	"regexp"
	"strings"
	"testing"
)

// An owner of an action can move a tag to other code, but not a commit.
func TestActionsArePinnedByCommit(t *testing.T) {
	t.Parallel()
	const path = "../.github/workflows/test.yml"
	pinned := regexp.MustCompile(`^- uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$`)
	actions := 0
	for i, line := range strings.Split(readFile(t, path), "\n") {
		if line = strings.TrimSpace(line); !strings.Contains(line, "uses:") {
			continue
		}
		actions++
		if !pinned.MatchString(line) {
			t.Errorf("%s:%d: %q: name the commit of the action (40 hex digits), and its version in a comment", path, i+1, line)
		}
	}
	if actions == 0 {
		t.Errorf("%s uses no action, or this test does not find them", path)
	}
}
