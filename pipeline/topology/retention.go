package topology

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// defaultRetention is the default of brokers for topics without retention.ms.
const defaultRetention = 7 * 24 * time.Hour

// RetentionGap returns why a topic deletes records that the source of its pipeline still
// has, or "". from and to are the settings of the topics. A record that a pipeline writes
// keeps the time of its event, and retention counts from there: an event that is older is
// deleted at once, not some time after it was written.
func RetentionGap(source string, from, to map[string]string) string {
	had, _ := retention(from)
	has, text := retention(to)
	if has >= had {
		return ""
	}
	return fmt.Sprintf("its records keep the times of their events, so Kafka deletes events older than %s right after they are written, although %s still has them: set retention.ms", text, source)
}

// retention returns how long a topic with these settings keeps records.
func retention(config map[string]string) (period time.Duration, text string) {
	const unlimited = time.Duration(1<<63 - 1)
	if policy, ok := config["cleanup.policy"]; ok && !strings.Contains(policy, "delete") {
		return unlimited, ""
	}
	ms, err := strconv.ParseInt(config["retention.ms"], 10, 64)
	switch {
	case err != nil:
		return defaultRetention, "the brokers' retention (by default 7 days)"
	case ms < 0 || ms > unlimited.Milliseconds():
		return unlimited, ""
	}
	period = time.Duration(ms) * time.Millisecond
	return period, period.String()
}
