package kafkatest

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// KcatCount counts the records of a topic that a consumer with
// isolation.level=read_committed sees from its beginning to its end. It is the
// second opinion of another client: kcat, which is built on librdkafka. Without
// kcat on the PATH the error is an [exec.ErrNotFound].
func KcatCount(ctx context.Context, brokers []string, topic string) (int, error) {
	cmd := exec.CommandContext(ctx, "kcat", "-C", "-b", strings.Join(brokers, ","), "-t", topic,
		"-X", "isolation.level=read_committed", "-X", "check.crcs=true",
		"-o", "beginning", "-e", "-q", "-f", "%o\n")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("counting %s with kcat: %w\n%s", topic, err, errs.Bytes())
	}
	return bytes.Count(out.Bytes(), []byte{'\n'}), nil
}
