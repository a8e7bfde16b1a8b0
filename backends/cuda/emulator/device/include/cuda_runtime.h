// The language itself is in device.h, which comes before every source.
#pragma once
