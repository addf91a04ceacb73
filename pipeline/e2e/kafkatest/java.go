package kafkatest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// runJava runs a program from its source, with the jars in some directories, and returns its
// output. It needs a JDK.
func runJava(ctx context.Context, name string, source []byte, jars []string, in io.Reader, args ...string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "millrace-java-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // best effort
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, source, 0o600); err != nil {
		return nil, err
	}
	var classes []string
	for _, jar := range jars {
		classes = append(classes, filepath.Join(jar, "*"))
	}
	cmd := exec.CommandContext(ctx, "java", append([]string{"-Xmx256m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-cp", strings.Join(classes, string(os.PathListSeparator)), file}, args...)...)
	var out, log bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &log
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s (it needs a JDK): %w\n%s", name, err, &log)
	}
	return out.Bytes(), nil
}
