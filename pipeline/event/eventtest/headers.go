package eventtest

import (
	"fmt"
	"strings"

	"millrace/pipeline"
)

// HeaderText returns headers as lines of key=value.
func HeaderText(headers []pipeline.Header) string {
	var out []string
	for _, h := range headers {
		out = append(out, fmt.Sprintf("%s=%s", h.Key, h.Value))
	}
	return strings.Join(out, "\n")
}
