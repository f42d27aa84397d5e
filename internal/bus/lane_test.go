package bus_test

// The tests of this package also run against a broker in a container.
import _ "github.com/wecom-bridge/wecom-bridge/internal/bus/bustest/container"
