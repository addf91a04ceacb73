package topology_test

import (
	"strings"
	"testing"

	"millrace/pipeline/topology"
)

func TestATopicThatDeletesWhatItsSourceStillHasIsReported(t *testing.T) {
	ms := func(v string) map[string]string { return map[string]string{"retention.ms": v} }
	for _, test := range []struct {
		name     string
		from, to map[string]string
		want     string // "" for no gap
	}{
		{"everything against the default", ms("-1"), nil, "events older than the brokers' retention (by default 7 days)"},
		{"everything against a day", ms("-1"), ms("86400000"), "events older than 24h0m0s right after they are written, although in still has them"},
		{"30 days against the default", ms("2592000000"), nil, "7 days"},
		{"both the default", nil, nil, ""},
		{"both everything", ms("-1"), ms("-1"), ""},
		{"a shorter source", ms("3600000"), nil, ""},
		{"a compacted output", ms("-1"), map[string]string{"cleanup.policy": "compact"}, ""},
		{"a compacted source", map[string]string{"cleanup.policy": "compact"}, nil, "7 days"},
		{"compact and delete", ms("-1"), map[string]string{"cleanup.policy": "compact,delete", "retention.ms": "1000"}, "older than 1s"},
	} {
		got := topology.RetentionGap("in", test.from, test.to)
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
